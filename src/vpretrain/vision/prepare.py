"""The checkpoint that steering starts from: loaded where one is named, made once from the recipe
where none is at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vpretrain.models import prepared
from vpretrain.models.loading import named
from vpretrain.run.pretrain import Pretraining, pretrain
from vpretrain.system import devices
from vpretrain.system.phases import phase
from vpretrain.vision.data.loading import PictureSets
from vpretrain.vision.data.stream import Stream, fingerprint
from vpretrain.vision.learners import Learner, assembled, baseline_of, save
from vpretrain.vision.loading import new_model
from vpretrain.vision.recipe import Prepare, VisionRecipe

_OF_LEARNER = (
    "kind",
    "crops",
    "head",
    "student_temperature",
    "teacher_temperature",
    "center_momentum",
    "centering",
    "predictor",
    "blocks",
    "error",
)
"""Keys of ``learner`` that what is made depends on."""


def cached(recipe: VisionRecipe, sets: PictureSets) -> Path:
    """Where the prepared learner is or will be, in ``$VPRETRAIN_CACHE`` or ``~/.cache/vpretrain``,
    named after its making.
    """
    description = [
        recipe.data.model_dump(mode="json", include={"image_size", "load_size"}),
        recipe.learner.model_dump(mode="json", include=set(_OF_LEARNER)),
        prepared.section_of(recipe.learner.prepare).model_dump(mode="json"),
        [
            [source.name, source.weight, len(source.pictures), fingerprint(source.pictures)]
            for source in sets.stream
        ],
    ]
    return prepared.cache_path(description)


def locate(recipe: VisionRecipe, sets: PictureSets) -> str | None:
    """Folder or hub id of the backbone; a prepared one is made here if the cache lacks it; None for
    random weights.
    """
    section = recipe.learner
    if section.config is not None:
        return None
    if section.model is not None:
        return named(section.model)
    folder = cached(recipe, sets)
    if not prepared.is_model(folder):
        make(recipe, sets, folder)
    return str(folder)


def make(recipe: VisionRecipe, sets: PictureSets, out: Path) -> Path:
    """Trains a backbone from random weights on the stream, without steering; the folder appears
    whole or not at all.
    """
    section = prepared.section_of(recipe.learner.prepare)
    with prepared.replacing_folder(out) as folder, torch.random.fork_rng():
        torch.manual_seed(
            section.seed
        )  # of the weights, and of what backbones draw while they train
        save(_trained(recipe, sets, section), folder)
    return out


def _trained(recipe: VisionRecipe, sets: PictureSets, section: Prepare) -> Learner:
    """A learner after plain self-supervised learning with AdamW."""
    made = recipe.learner.model_copy(
        update={"teacher_momentum": section.teacher_momentum, "aligned_blocks": 1}
    )
    attention = recipe.learner.attention
    model = new_model(
        section.config, dtype=torch.float32, attention=attention, where="learner.prepare.config"
    )
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
    how: Pretraining[Any, Any, Any] = Pretraining(
        learner, baseline_of(learner), optimizer, 1.0, "learner.prepare.learning_rate"
    )
    losses = pretrain(how, stream, _schedule(section))
    for _ in phase("making the learner (once), steps", losses, section.steps):
        pass
    return learner


def _schedule(section: Prepare) -> Iterator[tuple[float, float]]:
    """Learning rate and progress of each step: linear warm-up, a cosine to a hundredth."""
    for step in range(section.steps):
        rising = min(1.0, (step + 1) / (section.warmup_steps + 1))
        falling = 0.01 + 0.99 * (1 + math.cos(math.pi * step / section.steps)) / 2
        yield section.learning_rate * rising * falling, step / section.steps
