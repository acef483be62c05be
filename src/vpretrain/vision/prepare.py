"""Locate the checkpoint that a run starts from, or make it once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from vpretrain.models import checkpoint_cache
from vpretrain.models.loading import named
from vpretrain.run.pretrain import Pretraining, pretrain
from vpretrain.system import devices
from vpretrain.system.phases import phase
from vpretrain.vision.data.loading import PictureSets
from vpretrain.vision.data.stream import Stream, fingerprint
from vpretrain.vision.learners import assembled, save
from vpretrain.vision.loading import new_model
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.recipe.learner import Prepare
from vpretrain.vision.role import AnyPictureLearner

_OF_LEARNER = (
    *("kind", "crops", "head", "student_temperature", "teacher_temperature", "center_momentum"),
    *("centering", "predictor", "blocks", "error"),
)
"""Keys of ``learner`` that the prepared checkpoint depends on."""


def cached(recipe: VisionRecipe, sets: PictureSets) -> Path:
    """Return the folder of the prepared learner in the cache, named after its settings."""
    description = [
        recipe.data.model_dump(mode="json", include={"image_size", "load_size"}),
        recipe.learner.model_dump(mode="json", include=set(_OF_LEARNER)) | _arithmetic(recipe),
        checkpoint_cache.section_of(recipe.learner.prepare).model_dump(mode="json"),
        [
            [source.name, source.weight, len(source.pictures), fingerprint(source.pictures)]
            for source in sets.stream
        ],
    ]
    return checkpoint_cache.cache_path(description)


def _arithmetic(recipe: VisionRecipe) -> dict[str, str]:
    """Return dtype and attention of the learner where they differ from the defaults.

    Defaults are left out, so that the names of existing checkpoints stay valid."""
    keys: dict[str, str] = recipe.learner.model_dump(
        include={"dtype", "attention"}, exclude_defaults=True
    )
    # A float64 run continues a learner that was made in float32.
    return {key: value for key, value in keys.items() if value != "float64"}


def locate(recipe: VisionRecipe, sets: PictureSets) -> str | None:
    """Return folder or hub id of the backbone, made if not in the cache; None: random weights."""
    section = recipe.learner
    if section.config is not None:
        return None
    if section.model is not None:
        return named(section.model)
    folder = cached(recipe, sets)
    return str(checkpoint_cache.made_once(folder, lambda: make(recipe, sets, folder)))


def make(recipe: VisionRecipe, sets: PictureSets, out: Path) -> Path:
    """Train a backbone from random weights without steering; the folder is written atomically."""
    section = checkpoint_cache.section_of(recipe.learner.prepare)
    with checkpoint_cache.replacing_folder(out) as folder, torch.random.fork_rng():
        torch.manual_seed(section.seed)  # for weights and dropout
        save(_trained(recipe, sets, section), folder)
    return out


def _trained(recipe: VisionRecipe, sets: PictureSets, section: Prepare) -> AnyPictureLearner:
    made = recipe.learner.model_copy(
        update={"teacher_momentum": section.teacher_momentum, "aligned_blocks": 1}
    )
    attention = recipe.learner.attention
    where = "learner.prepare.config"
    model = new_model(section.config, dtype=torch.float32, attention=attention, where=where)
    learner = assembled(made, model.to(devices.device()), section.seed)
    stream = Stream(
        sets.stream,
        batch_size=section.batch_size,
        size=recipe.data.image_size,
        seed=section.seed,
        load_size=recipe.data.load_size,
    )
    parameters = [p for p in learner.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=section.weight_decay)
    key = "learner.prepare.learning_rate"
    how = Pretraining(learner, learner.baseline_task, optimizer, 1.0, key)
    losses = pretrain(how, stream, _schedule(section))
    for _ in phase("making the learner (once), steps", losses, section.steps):
        pass
    return learner


def _schedule(section: Prepare) -> Iterator[tuple[float, float]]:
    """Yield learning rate and progress of each step: linear warm-up, cosine to a hundredth."""
    for step in range(section.steps):
        rising = min(1.0, (step + 1) / (section.warmup_steps + 1))
        falling = 0.01 + 0.99 * (1 + math.cos(math.pi * step / section.steps)) / 2
        yield section.learning_rate * rising * falling, step / section.steps
