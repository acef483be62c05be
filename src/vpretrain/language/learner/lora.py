"""LoRA by PEFT: attached to a model in place, saved as an adapter or in whole weights.

PEFT is imported where it is called: it takes seconds, and most runs have no adapter.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from vpretrain.language.recipe.learner import Lora
from vpretrain.method.vectors import wide
from vpretrain.models.finite import refuse_unusable
from vpretrain.models.load_errors import explained
from vpretrain.system.errors import Problem, UserError, user_error

if TYPE_CHECKING:
    from peft import PeftModel


def attach(model: Any, section: Lora, *, base: str | None, seed: int) -> PeftModel:
    """Freezes the model and puts adapters into its linear modules, which then do nothing until they
    are trained.

    The model itself is changed and is what goes on being called: its class and the names of its
    parts stay. Adapters are float32 where the model's weights are narrower.

    Args:
        model: a causal language model.
        section: rank, scale, dropout and targets; ``UserError`` for one that matches no module.
        base: folder or hub id of the model, noted in a saved adapter; None where there is none.
        seed: of the adapters' first values; torch's own random state is left alone.

    Returns:
        PEFT's view of the model, for :func:`save`.
    """
    from peft import LoraConfig, get_peft_model

    linear = _linear(model)
    config = LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=_targets(model, section.targets, linear),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # Of PEFT, for transformers 6.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    # PEFT notes the path as it was given: another folder wherever the adapter is opened from.
    local = base is not None and Path(base).is_dir()
    config.base_model_name_or_path = str(Path(base).resolve()) if base and local else base
    return adapted


def _targets(
    model: Any, targets: str | list[str], linear: Mapping[str, nn.Module]
) -> str | list[str]:
    """What PEFT is given as targets."""

    def named(name: str, target: str) -> bool:
        return name == target or name.endswith(f".{target}")

    if targets != "all-linear":
        missing = [target for target in targets if not any(named(name, target) for name in linear)]
        if missing or not targets:
            names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            accepted = f"all-linear, or a list of these: {names}"
            message = "no linear module has this name (or ends in it)"
            message = message if missing else "give at least one target"
            where = "learner.lora.targets"
            raise UserError(
                *(Problem(where, each, accepted, message) for each in missing or ["[]"])
            )
    if not any(parameter.dim() > 2 for parameter in model.parameters()):
        return targets
    # PEFT would take fused experts for linear modules too, which cannot be merged or run in another
    # dtype.
    return [
        name
        for name in linear
        if targets == "all-linear" or any(named(name, target) for target in targets)
    ]


def save(adapted: Any, folder: Path, *, merge: bool) -> None:
    """Writes a whole model with its adapter in ``folder/adapter`` (``merge``), or only the adapter;
    ``AutoModelForCausalLM.from_pretrained`` opens either.

    A whole one is in float32 where its weights are narrower: rounded to bfloat16, most of what an
    adapter adds would be lost.
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
    # PEFT's form to fill in; the card is one folder up.
    (folder / "adapter" / "README.md").unlink(missing_ok=True)


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the model without adapters that computes the same, ``W + (alpha / r) B A``,
    float32 or wider.

    PEFT's own merging works in place, and taking the sum apart again would leave its rounding in
    the frozen weights.
    """
    from peft.tuners.lora import LoraLayer

    state = {
        name.replace(".base_layer.", "."): wide(each) if each.is_floating_point() else each
        for name, each in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in model.named_modules():
        for adapter in layer.active_adapters if isinstance(layer, LoraLayer) else ():
            weight, change = state[f"{name}.weight"], cast(Any, layer).get_delta_weight(adapter)
            state[f"{name}.weight"] = weight + change.to(weight.dtype)
    return state


def is_merged(folder: Path) -> bool:
    """Whether a local folder's weights hold an adapter, as :func:`save` writes it."""
    return (folder / "adapter" / "adapter_config.json").is_file()


@torch.no_grad()
def load(model: nn.Module, folder: Path) -> None:
    """Loads the adapter that :func:`save` wrote into ``folder`` (merged or not) into the adapters
    of a model to which :func:`attach` gave some of the same shape."""
    from safetensors.torch import load_file

    place = folder / "adapter" if is_merged(folder) else folder
    with explained(str(place), what="adapter"):
        saved = load_file(place / "adapter_model.safetensors")
        refuse_unusable(saved.items(), place)
        own = {
            name.replace(".default.", "."): parameter
            for name, parameter in model.named_parameters()
            if ".lora_" in name
        }
        given = {name.removeprefix("base_model.model."): each for name, each in saved.items()}
        if given.keys() != own.keys():
            raise ValueError("it has other modules than the recipe's learner.lora")
        for name, parameter in own.items():
            parameter.copy_(given[name])


def base_of(folder: Path) -> str | None:
    """The base that a local folder's adapter was trained on (a folder or hub id); None where the
    folder holds no adapter. ``UserError`` if the adapter does not name it, or comes to itself."""
    base, chain = _base(folder), [folder.resolve()]
    place = base
    while place is not None and (place := _base(Path(place))) is not None:
        chain.append(Path(place).resolve())
        if chain[-1] in chain[:-1]:
            message = "this adapter is, by way of its bases, its own base"
            accepted = "the model that it was trained on as base_model_name_or_path"
            where = str(folder / "adapter_config.json")
            raise user_error(where, message, value=place, accepted=accepted)
    return base


def _base(folder: Path) -> str | None:
    config = folder / "adapter_config.json"
    if not config.is_file():
        return None
    from peft import PeftConfig

    with explained(str(folder), what="adapter"):
        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        message = "this adapter does not say which model it belongs to"
        accepted = "the model's folder or hub id as base_model_name_or_path"
        raise user_error(str(config), message, accepted=accepted)
    return str(base)


def merge_into(model: Any, folder: Path) -> Any:
    """The model with the adapter of a local folder in its weights, all of which train again."""
    from peft import PeftModel

    with explained(str(folder), what="adapter"):
        adapted = PeftModel.from_pretrained(model, str(folder))
        refuse_unusable(adapted.named_parameters(), folder)
        whole = adapted.merge_and_unload()  # there are kinds of adapters that cannot be merged
    return whole.requires_grad_(True)


def _linear(model: Any) -> dict[str, nn.Module]:
    """Modules that can carry an adapter, by name; merging would untie a tied head."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head if head is not None and head.weight is embedding.weight else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not tied
    }
