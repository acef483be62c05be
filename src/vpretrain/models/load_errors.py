"""Turn exceptions of model and tokenizer loaders into readable errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import RepositoryNotFoundError

from vpretrain.system.errors import UserError, brief, user_error
from vpretrain.system.memory import out_of_memory

ASSETS = Path(__file__).parents[1] / "assets"
"""Folder of the checkpoints packaged with vpretrain, one subfolder each."""


@contextmanager
def explained(
    location: str, where: str = "learner.model", *, what: str = "model", attention: str = ""
) -> Iterator[None]:
    """Convert exceptions of a loader inside the ``with`` block to a UserError.

    The hub, tokenizers, configurations and safetensors each have their own exceptions. An
    out-of-memory error is not the user's mistake and is not converted.

    Args:
        location: folder or hub id that is read.
        where: dotted recipe key that named it.
        what: ``model``, ``adapter`` or ``tokenizer``.
        attention: attention implementation that the recipe asked for.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        if about_attention(error):
            raise lacks_attention(attention, error) from error
        packaged = ", ".join(sorted(path.name for path in ASSETS.glob("*/")))
        raise user_error(
            where,
            _why(what, Path(location), error),
            value=location,
            accepted=f"a model folder, a hub id, a GGUF file, or a packaged checkpoint: {packaged}",
        ) from error


def about_attention(error: Exception) -> bool:
    """Whether a model was refused because of the attention implementation."""
    return "attention implementation" in str(error) or "FlashAttention" in str(error)


def lacks_attention(attention: str, error: Exception) -> UserError:
    """Return the error for a model that does not support the attention implementation."""
    return user_error(
        "learner.attention",
        f"this model does not run with it here: {brief(error).partition('. ')[0]}",
        value=attention,
        accepted="eager (every model has it), or another that the model and this machine have",
    )


def may_be_hub_id(path: Path) -> bool:
    """Whether a path could be ``NAME`` or ``OWNER/NAME``."""
    return not (path.is_absolute() or len(path.parts) > 2 or ".." in path.parts)


def _why(what: str, folder: Path, error: Exception) -> str:
    if folder.suffix == ".gguf":
        if not folder.is_file():
            return f"there is no such file (a relative path starts at {Path.cwd()})"
        if "is not supported" in str(error):
            return f"{brief(error)} Convert it to a folder, or take another model"
        return f"this GGUF file is damaged or cut short: {brief(error)}"
    if folder.is_file():
        return "this is a file; name the folder that it is in"
    if not folder.is_dir():
        here = f"there is no such folder (a relative path starts at {Path.cwd()})"
        if not may_be_hub_id(folder):
            return here
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"{here}, and no public model of this name on the hub; for a private one log in "
                "with `hf auth login`"
            )
        return f"{here}, and the hub could not be reached or does not give it: {brief(error)}"
    if "weights_only" in str(error):
        return (
            f"pickled weights ({', '.join(_pickled(folder)) or '*.bin'}) hold something else than "
            "tensors, which is never unpickled; where you know who wrote them convert them to "
            "safetensors, or take a model that has them"
        )
    if "trust_remote_code" in str(error):
        return (
            "this model comes with code of its own, which is never run; name one of an "
            "architecture of transformers"
        )
    if (folder / "model" / "config.json").is_file():
        return f"this is the folder of a run, not of a model; did you mean {folder / 'model'}?"
    if what == "tokenizer" and not list(folder.glob("*token*")):
        return (
            "there is no tokenizer in this folder; name the one it was trained with in "
            "learner.tokenizer"
        )
    if what == "model" and not (folder / "config.json").is_file():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        return (
            "there is no config.json in this folder, which every transformers model has; it "
            f"holds {there}"
        )
    if broken := sorted(path.name for path in folder.iterdir() if not path.exists()):
        return f"links in this folder lead nowhere: {', '.join(broken)}; copy the files themselves"
    return f"cannot be loaded: {brief(error)}"


def _pickled(folder: Path) -> list[str]:
    endings = ("*.bin", "*.pt", "*.pth")
    return sorted(path.name for ending in endings for path in folder.glob(ending))
