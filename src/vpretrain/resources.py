"""What a run takes against what the machine has: a rough estimate, to be told before hours are spent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpretrain.errors import Problem
from vpretrain.recipe import Recipe

_WORD = 4  # bytes of a float32
_MEMORY_INFO = Path("/proc/meminfo")


def shortages(model: nn.Module, folder: Path = Path()) -> list[Problem]:
    """What the machine is too small for, with ``where`` being ``memory`` or ``disk``.

    Memory: weights, and for parameters that train also the gradient and Adam's two moments, all in float32; activations
    come on top. Disk: three models (the final one, a checkpoint, and the one that is being written).

    Args:
        model: only the sizes of its parameters are read, so that it may be on the meta device.
        folder: on the disk that results are written to.
    """
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = []
    needed, available = _WORD * (every + 3 * trained), available_memory_bytes()
    if available is not None and needed > available:
        found.append(Problem(
            "memory", f"{_size(available)} available", f"{_size(needed)} or more",
            f"weights, gradient and Adam's moments of {every:,} parameters do not fit; take a smaller model or machine",
        ))  # fmt: skip
    needed, free = 3 * _WORD * every, shutil.disk_usage(folder).free
    if needed > free:
        found.append(Problem(
            "disk", f"{_size(free)} free in {folder.resolve()}", f"{_size(needed)} or more",
            "the model and its checkpoints do not fit on this disk; make room, or run from a folder on another",
        ))  # fmt: skip
    return found


def available_memory_bytes() -> int | None:
    """What the system says could be used without swapping; None where it does not say (no ``/proc/meminfo``)."""
    try:
        lines = _MEMORY_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU (a plain RuntimeError there) or on an accelerator."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


SIZES = ("batch_size", "window_tokens", "max_tokens", "image_size", "global_size", "local_count", "candidates")
"""Last parts of recipe keys that memory grows with, in every modality."""


def smaller(recipe: Recipe) -> str:
    """What to lower in a recipe that does not fit into memory, with the values that it has now."""
    found: list[str] = []

    def walk(tree: Any, at: str) -> None:
        if isinstance(tree, dict):
            for name, item in tree.items():
                walk(item, f"{at}.{name}" if at else name)
        elif at.rpartition(".")[2] in SIZES and isinstance(tree, int) and not at.startswith("learner.prepare"):
            found.append(f"{at} (now {tree})")

    walk(recipe.model_dump(mode="json"), "")
    return f"lower {', '.join(found)}, or take a smaller learner"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
