"""LoRA by PEFT: attached to a model in place, saved as an adapter, and merged into whole weights
without a change to itself.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from vpretrain.language.recipe.learner import Lora
from vpretrain.system.errors import Problem, UserError, user_error


def attach(model: Any, section: Lora, *, base: str | None, seed: int) -> PeftModel:
    """Freezes the model and puts adapters into its linear modules, which then do nothing until they
    are trained.

    The model itself is changed and is what goes on being called: its class and the names of its
    parts stay. Adapters are float32 where the model's weights are narrower.

    Args:
        model: a causal language model.
        section: rank, scale, dropout and targets.
        base: folder or hub id of the model, noted in a saved adapter; None where there is none.
        seed: of the adapters' first values; torch's own random state is left alone.

    Returns:
        PEFT's view of the model, for :func:`save`.

    Raises:
        UserError: a target matches no linear module.
    """
    linear = _linear(model)
    targets = section.targets
    if targets != "all-linear":
        missing = [target for target in targets if not any(_named(name, target) for name in linear)]
        if missing or not targets:
            names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            message = (
                "no linear module has this name (or ends in it)"
                if missing
                else "give at least one target"
            )
            raise UserError(
                *(
                    Problem(
                        "learner.lora.targets",
                        shown,
                        f"all-linear, or a list of these: {names}",
                        message,
                    )
                    for shown in missing or ["[]"]
                )
            )
    if any(parameter.dim() > 2 for parameter in model.parameters()):
        # PEFT would take fused experts for linear modules too, which cannot be merged or run in
        # another dtype.
        targets = [
            name
            for name in linear
            if targets == "all-linear" or any(_named(name, target) for target in targets)
        ]
    config = LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing`", FutureWarning
        )  # of PEFT, for transformers 6
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    # PEFT notes the path as it was given, which means another folder wherever the adapter is opened
    # from.
    config.base_model_name_or_path = (
        str(Path(base).resolve()) if base and Path(base).is_dir() else base
    )
    return adapted


def save(adapted: Any, folder: Path, *, merge: bool) -> None:
    """Writes a whole model with its adapter in ``folder/adapter``, or the adapter alone.

    Args:
        adapted: what :func:`attach` returned; not changed.
        folder: ``AutoModelForCausalLM.from_pretrained`` opens it either way (an adapter finds its
            base by itself).
        merge: whether the whole model is written. It is in float32 where its weights are narrower:
            rounded to bfloat16, most of what an adapter adds would be lost.
    """
    if not merge:
        adapted.save_pretrained(folder, save_embedding_layers=False)
        return
    model = adapted.get_base_model()
    config = copy.deepcopy(model.config)
    state = merged(model)
    config.dtype = state[next(iter(state))].dtype
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    whole.save_pretrained(folder)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter" / "README.md").unlink(
        missing_ok=True
    )  # PEFT's form to fill in; the card is one folder up


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the model without adapters that computes the same, ``W + (alpha / r) B A``,
    float32 or wider.

    PEFT's own merging works in place, and taking the sum apart again would leave its rounding in
    the frozen weights.
    """
    state = {
        name.replace(".base_layer.", "."): tensor.to(
            torch.promote_types(tensor.dtype, torch.float32)
        )
        if tensor.is_floating_point()
        else tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    layers: dict[str, Any] = {
        n: module for n, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    for name, layer in layers.items():
        for adapter in layer.active_adapters:
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return state


def base_of(folder: Path) -> str | None:
    """The base that a local folder's adapter was trained on (a folder or hub id); None where the
    folder holds no adapter.

    Raises:
        UserError: its adapter does not say.
    """
    if not (folder / "adapter_config.json").is_file():
        return None
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise user_error(
            str(folder / "adapter_config.json"),
            "this adapter does not say which model it belongs to",
            accepted="the model's folder or hub id as base_model_name_or_path",
        )
    return str(base)


def merge_into(model: Any, folder: Path) -> Any:
    """The model with the adapter of a local folder in its weights, all of which train again."""
    whole = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return whole.requires_grad_(True)


def _linear(model: Any) -> dict[str, nn.Module]:
    """Modules that can carry an adapter, by name; a tied head cannot, since merging would
    untie it.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head if head is not None and head.weight is embedding.weight else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not tied
    }


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
