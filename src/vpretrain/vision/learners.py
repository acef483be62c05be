"""Load, warm up and save learners."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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
from vpretrain.vision.data.crops import MultiCrop
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.dino.learner import DinoLearner
from vpretrain.vision.dino.loss import DinoHead
from vpretrain.vision.ijepa.learner import IJepaLearner
from vpretrain.vision.ijepa.predictor import Predictor
from vpretrain.vision.loading import load_model, new_model
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.recipe.learner import LearnerSection
from vpretrain.vision.role import AnyPictureLearner


def new_learner(recipe: VisionRecipe, location: str | None) -> tuple[AnyPictureLearner, bool]:
    """Return the recipe's learner, and whether its checkpoint held the learner's own state.

    That state is head and teacher (DINO), or predictor and target encoder (I-JEPA).

    Args:
        recipe: the recipe of the learner.
        location: folder or hub id of the backbone; None for random weights (``learner.config``).

    Raises:
        UserError: the model cannot be loaded, or its layout does not fit the kind of learner.
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
    """Build the learner around a backbone, with a head or predictor initialised from ``seed``."""
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
            blocks=section.blocks,
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
    aligned = {f"backbone.{name}": p for name, p in chosen.items()}  # names in the learner's model
    crops = MultiCrop(section.crops)
    return DinoLearner(
        backbone, head, aligned, lambda batch: crops(batch.to(backbone.device)), section
    )


def warm_up(
    learner: AnyPictureLearner, batches: Iterator[ImageBatch], *, steps: int, learning_rate: float
) -> list[float]:
    """Train a fresh DINO head or I-JEPA predictor on frozen features and return each step's loss.

    It has its own AdamW. Without this warm-up, the random head's gradients would be noise to the
    backbone.

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
    """Save the backbone as an ordinary model folder, with ``KIND.safetensors`` in it."""
    learner.backbone.model.save_pretrained(folder)
    save_file(
        {name: t.detach().cpu().clone() for name, t in learner.own_state().items()},
        folder / f"{learner.kind}.safetensors",
    )


def restore(learner: AnyPictureLearner, path: Path) -> None:
    """Load the learner's own state from the file written by :func:`save`, in the learner's dtypes.

    Raises:
        UserError: the head or predictor has another shape, a value is unusable, or the file cannot
            be read.
    """
    try:
        saved = load_file(path)
    except Exception as error:  # safetensors has its own exceptions
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
    load_own_state(learner, saved)


def own_state_on_cpu(learner: AnyPictureLearner) -> dict[str, Tensor]:
    """Copy the learner's own state to the CPU."""
    state = learner.own_state()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def changed_state(learner: AnyPictureLearner, change: Callable[[], object]) -> dict[str, Tensor]:
    """Apply a change and return the tensors of the learner's own state that it altered.

    A warm-up alters the head or predictor, but not the whole teacher."""
    before = own_state_on_cpu(learner)
    change()
    after = own_state_on_cpu(learner)
    return {name: each for name, each in after.items() if not torch.equal(each, before[name])}


@torch.no_grad()
def load_own_state(learner: AnyPictureLearner, state: Mapping[str, Tensor]) -> None:
    """Copy values into the learner's own state, or into a part of it."""
    own = learner.own_state()
    for name, tensor in state.items():
        own[name].copy_(tensor)
    learner.restored()
