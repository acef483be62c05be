"""Vision models: from a folder, from the hub, or with random weights from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from vpretrain.config.problems import nearest, shown
from vpretrain.run.resources import out_of_memory, too_deep
from vpretrain.system.errors import Problem, UserError, abbreviated, user_error


def load_model(location: str, *, dtype: torch.dtype, attention: str) -> Any:
    """A pretrained vision model from a folder or the hub, in training mode.

    Args:
        location: folder or hub id.
        dtype: float32, bfloat16 or float64.
        attention: ``sdpa`` or ``eager``.

    Raises:
        UserError: there is no such model, or its weights are not those that its configuration asks
            for.
    """
    try:
        model, report = AutoModel.from_pretrained(
            location,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (
        Exception
    ) as error:  # the hub, configurations and safetensors have exceptions of their own
        if out_of_memory(error):
            raise
        folder = Path(location)
        why = (
            "this is a file; name the folder that it is in"
            if folder.is_file()
            else f"cannot be loaded: {_brief(error)}"
        )
        raise user_error(
            "learner.model", why, value=location, accepted="a model folder or a hub id"
        ) from error
    # A pooler is not used, and checkpoints of the same weights come with it or without.
    unfilled = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    unfilled = {name for name in unfilled if not name.startswith("pooler.")}
    if unfilled:
        raise user_error(
            "learner.model",
            f"{len(unfilled)} of the parameters that its config.json asks for are not in its "
            "weights, or of another size",
            value=abbreviated(sorted(unfilled), most=3),
            accepted="a folder whose weights and config.json were saved together",
        )
    return model.train()


def new_model(
    config: dict[str, Any], *, dtype: torch.dtype, attention: str, where: str = "learner.config"
) -> Any:
    """A vision model with random weights, in training mode; they are the same (but for rounding) in
    every dtype.

    Args:
        config: ``model_type`` (``dinov3_vit``, ``dinov2``, ...) and the keys of that model's
            ``transformers`` configuration.
        dtype: float32, bfloat16 or float64.
        attention: ``sdpa`` or ``eager``.
        where: dotted recipe key of the configuration, for messages.

    Raises:
        UserError: an unknown type or key, or values that make no model.
    """
    if problems := too_deep(config, where):
        raise UserError(*problems)
    kind = config.get("model_type")
    try:
        defaults = AutoConfig.for_model(str(kind))
    except ValueError as error:
        raise user_error(
            f"{where}.model_type",
            "transformers has no model of this type",
            value=kind or "",
            accepted="dinov3_vit, dinov2, dinov2_with_registers, vit, ...",
        ) from error
    keys = sorted(defaults.to_dict())
    if unknown := [key for key in config if key not in keys and not hasattr(defaults, key)]:
        # transformers takes a misspelt key in silence and keeps its default, which may be huge
        raise UserError(
            *(
                Problem(
                    f"{where}.{key}",
                    shown(config[key]),
                    ", ".join(keys),
                    f"{kind} has no such key{nearest(key, keys)}",
                )
                for key in unknown
            )
        )
    try:
        resolved = AutoConfig.for_model(**config)
        model = AutoModel.from_config(resolved, dtype=torch.float32, attn_implementation=attention)
        if dtype != torch.float32:
            drawn = model.state_dict()
            model = AutoModel.from_config(resolved, dtype=dtype, attn_implementation=attention)
            model.load_state_dict(drawn)
        return model.train()
    except Exception as error:  # each configuration class has checks and exceptions of its own
        if out_of_memory(error):
            raise
        raise user_error(
            where,
            f"this makes no vision model: {_brief(error)}",
            value=config,
            accepted="`model_type` of a transformers vision model, and values for its keys that go "
            "together",
        ) from error


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
