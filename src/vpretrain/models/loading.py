"""Load models of either modality from a folder, the hub, a GGUF file or a configuration.

Exceptions of the loaders become readable errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.utils import logging

from vpretrain.config.problems import nearest, shown
from vpretrain.models.finite import refuse_unusable
from vpretrain.models.load_errors import (
    ASSETS,
    about_attention,
    explained,
    lacks_attention,
    may_be_hub_id,
)
from vpretrain.system.errors import Problem, UserError, abbreviated, brief, user_error
from vpretrain.system.memory import out_of_memory


@dataclass(frozen=True)
class ModelKind:
    """The kind of model that a modality trains.

    Args:
        name: name in messages.
        auto: ``transformers`` auto class that loads it.
        types: supported ``model_type`` values of its configurations.
        examples: some of these, for messages.
        unused: prefixes of parameters that are not used and may be missing from the weights.
    """

    name: str
    auto: Any
    types: Mapping[str, Any]
    examples: str
    unused: tuple[str, ...] = ()


CAUSAL_LM = ModelKind(
    "causal language model",
    AutoModelForCausalLM,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "llama, qwen2, gpt2",
)
VISION = ModelKind(
    "vision model",
    AutoModel,
    MODEL_MAPPING_NAMES,
    "dinov3_vit, dinov2, vit",
    unused=("pooler.",),  # checkpoints come with or without a pooler
)


def named(model: str) -> str:
    """Resolve a recipe's ``model`` to a packaged checkpoint, a folder (with ``~``) or a hub id."""
    packaged = ASSETS / model
    return str(packaged if (packaged / "config.json").is_file() else Path(model).expanduser())


def load_model(kind: ModelKind, location: str, *, dtype: torch.dtype, attention: str) -> Any:
    """Load a pretrained model from a folder, the hub, or a GGUF file (weights are dequantised).

    Args:
        kind: kind of model.
        location: folder, hub id or file.
        dtype: dtype of the weights.
        attention: attention implementation, by its name in ``transformers``.

    Raises:
        UserError: there is no such model, the attention implementation is not available, or the
            weights do not match the configuration or are not finite.
    """
    _refuse_empty(kind, location, dtype, attention)
    with explained(location, attention=attention), _without_load_report():
        name, options = source(location)
        model, report = kind.auto.from_pretrained(
            name,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    unfilled = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if unfilled := {name for name in unfilled if not name.startswith(kind.unused)}:
        raise user_error(
            "learner.model",
            f"{len(unfilled)} of the parameters that its config.json asks for are not in its "
            "weights, or of another size",
            value=abbreviated(sorted(unfilled), most=3),
            accepted="a folder whose weights and config.json were saved together",
        )
    model = _dequantised(kind, model, dtype, attention) if is_gguf(location) else model
    refuse_unusable(model.named_parameters(), location)
    return model


def _refuse_empty(kind: ModelKind, location: str, dtype: torch.dtype, attention: str) -> None:
    """Raise a UserError if a configuration asks for far more parameters than the weights can hold.

    ``transformers`` would allocate the missing ones before it reports them."""
    files = [*Path(location).glob("*.safetensors"), *Path(location).glob("*.bin")]
    files = [path for path in files if path.is_file()]  # without broken links
    if not files:
        return
    size, config = sum(path.stat().st_size for path in files), load_config(location)
    with torch.device("meta"):
        model = from_config(
            kind, config, "learner.model", location, dtype=dtype, attention=attention
        )
    asked = sum(p.numel() for p in model.parameters())
    if asked > _MOST_A_BYTE * size + _HARMLESS:
        message = "its config.json asks for more parameters than its weights can hold"
        accepted = "a folder whose weights and config.json were saved together"
        value = f"{asked:,} parameters, {size:,} bytes of weights"
        raise user_error("learner.model", message, value=value, accepted=accepted)


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Silence ``transformers``' table of missing weights; those that matter raise an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def is_gguf(location: str) -> bool:
    """Whether a checkpoint is a GGUF file (llama.cpp's format)."""
    return Path(location).suffix == ".gguf"


def _dequantised(kind: ModelKind, model: Any, dtype: torch.dtype, attention: str) -> Any:
    """Convert a model that was read from a GGUF file to an ordinary one, which can be saved."""
    config, state = model.config, model.state_dict()
    del config.quantization_config
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    alike = torch.nn.functional.cosine_similarity(table.flatten(), head.flatten(), dim=0)
    if head is not table and alike > 0.98:
        # Some files hold a tied matrix twice, in two precisions; the head's has the higher one.
        config.tie_word_embeddings = True
        (name,) = [name for name, p in model.named_parameters() if p is table]
        state[name] = head
    plain = from_config(kind, config, "learner.model", "", dtype=dtype, attention=attention)
    plain.load_state_dict(state)
    plain.tie_weights()
    return plain


def load_config(location: str) -> Any:
    """Load the configuration of a pretrained model; a UserError if it cannot be read."""
    with explained(location):
        name, options = source(location)
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **options)


def new_model(
    kind: ModelKind, config: dict[str, Any], where: str, *, dtype: torch.dtype, attention: str
) -> Any:
    """Make a model with random weights from a configuration that includes its ``model_type``.

    The weights are drawn in float32 and then cast, so that they are equal up to rounding in every
    dtype.

    Args:
        kind: kind of model.
        config: ``model_type`` and keys of that model's ``transformers`` configuration.
        where: dotted recipe key of the configuration, for messages.
        dtype: dtype of the weights.
        attention: attention implementation, by its name in ``transformers``.

    Raises:
        UserError: the type or a key is unknown, the values do not define a model, or the attention
            implementation is not available.
    """
    _check_keys(kind, config, where)
    try:
        resolved = AutoConfig.for_model(**config)
    except Exception as error:  # each configuration class has its own checks and exceptions
        raise _makes_no_model(kind, where, config, error) from error
    model = from_config(kind, resolved, where, config, dtype=torch.float32, attention=attention)
    if dtype == torch.float32:
        return model
    drawn = model.state_dict()
    model = from_config(kind, resolved, where, config, dtype=dtype, attention=attention)
    model.load_state_dict(drawn)
    return model


def from_config(
    kind: ModelKind,
    resolved: Any,
    where: str,
    given: object,
    *,
    dtype: torch.dtype,
    attention: str,
) -> Any:
    """Make a model with random weights from a ``transformers`` configuration object.

    Args:
        kind: kind of model.
        resolved: the configuration.
        where: dotted recipe key, for messages.
        given: the user's value at that key, for messages.
        dtype: dtype of the weights.
        attention: attention implementation, by its name in ``transformers``.

    Raises:
        UserError: the configuration does not define a model of this kind, or the attention
            implementation is not available.
    """
    try:
        return kind.auto.from_config(resolved, dtype=dtype, attn_implementation=attention)
    except Exception as error:  # inconsistent sizes, a kernel that is not installed, ...
        if out_of_memory(error):
            raise
        if about_attention(error):
            raise lacks_attention(attention, error) from error
        raise _makes_no_model(kind, where, given, error) from error


def _makes_no_model(kind: ModelKind, where: str, given: object, error: Exception) -> UserError:
    why, of_another = brief(error), re.search(r"configuration class .*\.(\w+)Config'", str(error))
    if of_another:  # instead of transformers' list of all configurations
        why = f"it is a {of_another[1]}, which is of another kind"
    return user_error(
        where,
        f"this makes no {kind.name}: {why}",
        value=given,
        accepted=f"`model_type` of a transformers {kind.name}, and values for its keys that go "
        "together",
    )


# transformers still accepts these keys, and stores them elsewhere.
_OLD_KEYS = ("rope_theta", "rope_scaling", "torch_dtype")
_MOST_LAYERS = 1_000
_HARMLESS = 2**24
_MOST_A_BYTE = 8  # parameters per byte: 2 at 4 bits, and matrices can be tied
_DEPTH = re.compile(r"(layers?|depths?|stages|blocks|experts)$")


def _refuse_depth(config: dict[str, Any], where: str) -> None:
    """Refuse configurations with so many layers that ``transformers`` would hang on them."""
    message = "no model of so many layers (or experts) can be made here"
    for key, value in config.items():
        counts = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            _refuse_depth(value, f"{where}.{key}")
        elif _DEPTH.search(key) and any(isinstance(n, int) and n > _MOST_LAYERS for n in counts):
            accepted = f"1 to {_MOST_LAYERS}"
            raise user_error(f"{where}.{key}", message, value=value, accepted=accepted)


def _check_keys(kind: ModelKind, config: dict[str, Any], where: str) -> None:
    """Refuse unknown types and keys.

    ``transformers`` would silently ignore a misspelt key and use the default, which can be huge.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in kind.types:
        raise user_error(
            f"{where}.model_type",
            f"transformers has no {kind.name} of this type" + nearest(str(model_type), kind.types)
            if "model_type" in config
            else "add this key",
            value=model_type or "",
            accepted=f"one of {len(kind.types)} names, for example {kind.examples}",
        )
    _refuse_depth(config, where)
    defaults = AutoConfig.for_model(model_type)
    keys = sorted({*defaults.to_dict(), *defaults.attribute_map})
    if unknown := [
        Problem(
            f"{where}.{key}",
            shown(config[key]),
            ", ".join(keys),
            f"{model_type} has no such key{nearest(key, keys)}",
        )
        for key in config
        if key not in (*keys, *_OLD_KEYS) and not hasattr(defaults, key)
    ]:
        raise UserError(*unknown)


HUB_SECONDS = 5.0
"""Timeout of the hub, after which only the local cache is used; loaders themselves would retry for
most of a minute.
"""


def source(location: str) -> tuple[str, dict[str, Any]]:
    """Return name and options for ``from_pretrained`` from a folder, hub id or GGUF file.

    Raises:
        UserError: the package that reads GGUF files is not installed, or a folder's configuration
            has too many layers.
        OSError, httpx errors: see :func:`reach`.
    """
    path = Path(location) / "config.json"
    if path.is_file():
        with suppress(ValueError):  # invalid JSON is reported by the loader
            config = json.loads(path.read_bytes())
            _refuse_depth(config if isinstance(config, dict) else {}, str(path))
    if not is_gguf(location):
        return location, dict(reach(location))
    if find_spec("gguf") is None:
        raise user_error(
            "learner.model",
            "GGUF files are read by a package that is not installed; install the extra",
            value=location,
            accepted="pip install 'vpretrain[gguf]'",
        )
    return str(Path(location).parent), {"gguf_file": Path(location).name}


@cache
def reach(location: str) -> dict[str, bool]:
    """Return options for ``from_pretrained``: offline if the hub does not answer but the cache can.

    The hub is asked once per location; folders need no options.

    Raises:
        OSError, httpx errors: the hub does not have the model, or it does not answer and the model
            is not in the cache.
    """
    if Path(location).is_dir() or not may_be_hub_id(Path(location)):
        return {}
    try:
        HfApi().model_info(location, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        raise
    except Exception:  # no network, timeout, offline mode: each has its own exception
        if not isinstance(try_to_load_from_cache(location, "config.json"), str):
            raise
        return {"local_files_only": True}
    return {}
