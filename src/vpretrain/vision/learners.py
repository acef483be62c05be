"""From a checkpoint to a learner, and back to an ordinary model folder with the learner's own state
beside the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vpretrain.run.pretrain import Pretraining, pretrain
from vpretrain.system import devices
from vpretrain.system.contexts import evaluating, frozen, own_random_state
from vpretrain.system.errors import user_error
from vpretrain.system.phases import phase
from vpretrain.vision.backbone import Backbone, aligned_parameters
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.dino.learner import Context, DinoLearner, DinoSettings
from vpretrain.vision.dino.loss import DinoHead
from vpretrain.vision.feedback.features import Encoder, LastBlocks
from vpretrain.vision.ijepa.learner import IJepaLearner, baseline_task
from vpretrain.vision.ijepa.predictor import Predictor
from vpretrain.vision.loading import load_model, new_model
from vpretrain.vision.recipe import LearnerSection, VisionRecipe
from vpretrain.vision.steering.views import BaselineViews

Learner = DinoLearner | IJepaLearner


def new_learner(recipe: VisionRecipe, location: str | None) -> tuple[Learner, bool]:
    """The learner of the recipe, and whether it came with its own state (head, teacher; predictor,
    target encoder).

    Args:
        recipe: all its values.
        location: folder or hub id of the backbone; None for the random weights of
            ``learner.config``.

    Raises:
        UserError: the model cannot be loaded, or is not laid out as the kind of learner asks for.
    """
    section = recipe.learner
    dtype = (
        torch.float32 if section.dtype == "bfloat16" else getattr(torch, section.dtype)
    )  # see LearnerBase.dtype
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


def assembled(section: LearnerSection, model: Any, seed: int) -> Learner:
    """The learner around a backbone; head or predictor are drawn from ``seed``."""
    wide = torch.promote_types(model.dtype, torch.float32)
    autocast = torch.bfloat16 if section.dtype == "bfloat16" else None
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
    aligned = {
        f"backbone.{name}": parameter for name, parameter in chosen.items()
    }  # their names in the learner's model
    settings = DinoSettings(
        section.student_temperature,
        section.teacher_temperature,
        section.center_momentum,
        section.teacher_momentum,
        section.teacher_views,
        section.local_views_in_value,
        section.centering,
    )
    crops = section.crops.settings()
    return DinoLearner(
        backbone, head, aligned, lambda batch: crops(batch.to(backbone.device)), settings
    )


def encoder_of(learner: Learner, blocks: int) -> Encoder:
    """What heads and probes read: the outputs of the learner's last blocks; holds no copy of it."""
    backbone = (
        learner.backbone
        if isinstance(learner, DinoLearner)
        else Backbone(learner.encoder, autocast=learner.autocast)
    )
    return LastBlocks(backbone, blocks)


def width_of(encoder: Encoder) -> int:
    """D of the features that :func:`encoder_of` gives."""
    assert isinstance(encoder, LastBlocks)
    return encoder.blocks * encoder.backbone.width


def warm_up(
    learner: Learner, batches: Iterator[ImageBatch], *, steps: int, learning_rate: float
) -> list[float]:
    """Trains a fresh DINO head or I-JEPA predictor on frozen features; returns each step's loss.

    They are not released with backbones, and the gradient of a random one tells the backbone
    nothing.

    Args:
        learner: its backbone stays bit for bit.
        batches: unlabeled, from the stream.
        steps: how many, at least 0.
        learning_rate: of an AdamW that is thrown away afterwards.

    Raises:
        Fault: a loss is not finite.
    """
    fresh: nn.Module
    if isinstance(learner, DinoLearner):
        fresh, pretrained = learner.model.head, learner.backbone.model
    else:
        fresh, pretrained = learner.predictor, learner.encoder
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=learning_rate, weight_decay=0.0)
    how: Pretraining[Any, Any, Any] = Pretraining(
        learner, baseline_of(learner), optimizer, math.inf, "learner.head_warmup_learning_rate"
    )
    with evaluating(pretrained), frozen(pretrained.parameters()):
        losses = pretrain(how, batches, [(learning_rate, 0.0)] * steps)
        return list(phase("head warm-up on frozen features, steps", losses, steps))


def baseline_of(learner: Learner) -> Callable[[Any], Any]:
    """The task of a context without steering."""
    return _baseline_views if isinstance(learner, DinoLearner) else baseline_task


def _baseline_views(context: Context) -> BaselineViews:
    return BaselineViews()


def save(learner: Learner, folder: Path) -> None:
    """Writes the backbone as an ordinary model folder, and ``dino.safetensors`` or
    ``ijepa.safetensors`` beside it.
    """
    model = learner.backbone.model if isinstance(learner, DinoLearner) else learner.encoder
    model.save_pretrained(folder)
    kind = "dino" if isinstance(learner, DinoLearner) else "ijepa"
    save_file(
        {name: t.detach().cpu().clone() for name, t in _beside(learner)},
        folder / f"{kind}.safetensors",
    )


@torch.no_grad()
def restore(learner: Learner, path: Path) -> None:
    """Takes up the state that :func:`save` wrote beside the weights; numbers are cast to the
    learner's dtypes.

    Raises:
        UserError: it is of a head or predictor of another shape, or the file cannot be read.
    """
    try:
        saved = load_file(path)
    except Exception as error:  # safetensors has exceptions of its own
        raise user_error(
            str(path), f"this file cannot be read: {error}", accepted="a whole safetensors file"
        ) from error
    here = dict(_beside(learner))
    if differing := [
        n
        for n in here.keys() | saved.keys()
        if n not in here or n not in saved or here[n].shape != saved[n].shape
    ]:
        key = "learner.head" if isinstance(learner, DinoLearner) else "learner.predictor"
        first = min(differing)
        raise user_error(
            key,
            f"the state that came with the checkpoint ({path}) is of another shape; give it "
            "the shape it was made with",
            value=f"{first}: {list(here[first].shape) if first in here else 'not there'}",
            accepted=f"{first}: {list(saved[first].shape) if first in saved else 'none'}",
        )
    for name, tensor in here.items():
        tensor.copy_(saved[name])
    if isinstance(learner, DinoLearner):
        learner.teacher.load(
            learner.teacher.average
        )  # what runs follows what is averaged, in any dtype


def _beside(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    """Everything of the learner that is not in the backbone's folder, by name; the tensors
    themselves.
    """
    if isinstance(learner, DinoLearner):
        for name, parameter in learner.model.head.named_parameters():
            yield f"head.{name}", parameter
        for name, average in learner.teacher.average.items():
            yield f"teacher.{name}", average
        yield "center", learner.center
    else:
        for name, parameter in learner.predictor.named_parameters():
            yield f"predictor.{name}", parameter
        for name, parameter in learner.target_encoder.named_parameters():
            yield f"target_encoder.{name}", parameter


def beside(learner: Learner) -> dict[str, Tensor]:
    """Copies of that state, for :func:`put_beside`."""
    return {name: tensor.detach().clone() for name, tensor in _beside(learner)}


@torch.no_grad()
def put_beside(learner: Learner, state: dict[str, Tensor]) -> None:
    """Takes up copies made by :func:`beside`."""
    for name, tensor in _beside(learner):
        tensor.copy_(state[name])
    if isinstance(learner, DinoLearner):
        learner.teacher.load(learner.teacher.average)
