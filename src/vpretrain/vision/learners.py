"""From a checkpoint to a learner and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vpretrain.models.finite import refuse_unusable
from vpretrain.run.pretrain import Pretraining, pretrain
from vpretrain.system import devices
from vpretrain.system.contexts import evaluating, frozen, own_random_state
from vpretrain.system.errors import user_error
from vpretrain.system.phases import phase
from vpretrain.vision.backbone import Backbone, aligned_parameters
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.dino.learner import DinoLearner, DinoSettings
from vpretrain.vision.dino.loss import DinoHead
from vpretrain.vision.ijepa.learner import IJepaLearner
from vpretrain.vision.ijepa.predictor import Predictor
from vpretrain.vision.loading import load_model, new_model
from vpretrain.vision.recipe import LearnerSection, VisionRecipe
from vpretrain.vision.role import AnyPictureLearner


def new_learner(recipe: VisionRecipe, location: str | None) -> tuple[AnyPictureLearner, bool]:
    """The learner of the recipe, and whether it came with its own state (head, teacher; predictor,
    target encoder).

    Args:
        recipe: which learner.
        location: folder or hub id of the backbone; None for random weights (``learner.config``).

    Raises:
        UserError: the model cannot be loaded, or is not laid out as the kind of learner asks for.
    """
    section = recipe.learner
    # See LearnerBase.dtype.
    dtype = torch.float32 if section.dtype == "bfloat16" else getattr(torch, section.dtype)
    if location is None:
        assert section.config is not None
        with own_random_state(recipe.seed):
            model = new_model(section.config, dtype=dtype, attention=section.attention)
    else:
        model = load_model(location, dtype=dtype, attention=section.attention)
    learner = assembled(section, model.to(devices.device()), recipe.seed)
    path = None if location is None else Path(location) / f"{section.kind}.safetensors"
    if path is None or not path.is_file():
        return learner, False
    restore(learner, path)
    return learner, True


def assembled(section: LearnerSection, model: Any, seed: int) -> AnyPictureLearner:
    """The learner around a backbone; head or predictor are drawn from ``seed``."""
    wide = torch.promote_types(model.dtype, torch.float32)
    autocast = devices.autocast_dtype(section.dtype)
    if section.kind == "ijepa":
        assert isinstance(section.aligned_blocks, int)
        shape = section.predictor.model_dump()
        predictor = Predictor(model.config.hidden_size, **shape, seed=seed).to(model.device, wide)
        return IJepaLearner(
            model,
            predictor,
            aligned_blocks=section.aligned_blocks,
            blocks=section.blocks.settings(),
            momentum=(section.teacher_momentum, 1.0),
            error=section.error,
            mean=section.crops.mean,
            std=section.crops.std,
            autocast=autocast,
        )
    backbone = Backbone(model, autocast=autocast)
    with own_random_state(seed):
        head = DinoHead(backbone.width, **section.head.model_dump()).to(model.device, wide)
    chosen = aligned_parameters(
        backbone, blocks=section.aligned_blocks, patterns=section.aligned_patterns
    )
    aligned = {f"backbone.{name}": p for name, p in chosen.items()}  # as in the learner's model
    settings = DinoSettings(
        **{each.name: getattr(section, each.name) for each in fields(DinoSettings)}
    )
    crops = section.crops.settings()
    return DinoLearner(
        backbone, head, aligned, lambda batch: crops(batch.to(backbone.device)), settings
    )


def warm_up(
    learner: AnyPictureLearner, batches: Iterator[ImageBatch], *, steps: int, learning_rate: float
) -> list[float]:
    """Trains a fresh DINO head or I-JEPA predictor on frozen features with an AdamW of its own;
    returns each step's loss. The gradient of a random one tells the backbone nothing.

    Raises:
        Fault: a loss is not finite.
    """
    optimizer = torch.optim.AdamW(learner.fresh.parameters(), lr=learning_rate, weight_decay=0.0)
    key, backbone = "learner.head_warmup_learning_rate", learner.backbone.model
    how = Pretraining(learner, learner.baseline_task, optimizer, math.inf, key)
    with evaluating(backbone), frozen(backbone.parameters()):
        losses = pretrain(how, batches, [(learning_rate, 0.0)] * steps)
        return list(phase("head warm-up on frozen features, steps", losses, steps))


def save(learner: AnyPictureLearner, folder: Path) -> None:
    """Writes the backbone as an ordinary model folder, and ``KIND.safetensors`` beside it."""
    learner.backbone.model.save_pretrained(folder)
    save_file(
        {name: t.detach().cpu().clone() for name, t in learner.own_state().items()},
        folder / f"{learner.kind}.safetensors",
    )


def restore(learner: AnyPictureLearner, path: Path) -> None:
    """Takes up what :func:`save` wrote beside the weights, cast to the learner's dtypes.

    Raises:
        UserError: it is of a head or predictor of another shape, or the file cannot be read.
    """
    try:
        saved = load_file(path)
    except Exception as error:  # safetensors has exceptions of its own
        raise user_error(
            str(path), f"this file cannot be read: {error}", accepted="a whole safetensors file"
        ) from error
    here = learner.own_state()
    if differing := [
        n
        for n in here.keys() | saved.keys()
        if n not in here or n not in saved or here[n].shape != saved[n].shape
    ]:
        first = min(differing)
        raise user_error(
            learner.fresh_key,
            f"the state that came with the checkpoint ({path}) is of another shape; give it "
            "the shape it was made with",
            value=f"{first}: {list(here[first].shape) if first in here else 'not there'}",
            accepted=f"{first}: {list(saved[first].shape) if first in saved else 'none'}",
        )
    refuse_unusable(saved.items(), path, learner.fresh_key)
    put_beside(learner, saved)


def beside(learner: AnyPictureLearner) -> dict[str, Tensor]:
    """Copies of the learner's own state, on the CPU."""
    state = learner.own_state()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def moved_by(learner: AnyPictureLearner, change: Callable[[], object]) -> dict[str, Tensor]:
    """What a change moved of the learner's own state, for :func:`put_beside`: of a warm-up the head
    or predictor, and not the whole teacher."""
    before = beside(learner)
    change()
    after = beside(learner)
    return {name: each for name, each in after.items() if not torch.equal(each, before[name])}


@torch.no_grad()
def put_beside(learner: AnyPictureLearner, state: Mapping[str, Tensor]) -> None:
    """Takes up copies of the learner's own state, or of a part of it; the rest stays."""
    own = learner.own_state()
    for name, tensor in state.items():
        own[name].copy_(tensor)
    learner.restored()
