"""The checkpoint that steering starts from: loaded where one is named, made once from the recipe
where none is at hand.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from vpretrain.method.roles import detached
from vpretrain.models import prepared
from vpretrain.models.loading import named
from vpretrain.system.errors import Fault
from vpretrain.vision.data.loading import PictureSets
from vpretrain.vision.data.stream import Stream, fingerprint
from vpretrain.vision.dino.learner import DinoLearner
from vpretrain.vision.ijepa import learner as ijepa
from vpretrain.vision.learners import Learner, assembled, device, save
from vpretrain.vision.loading import new_model
from vpretrain.vision.recipe import Prepare, VisionRecipe
from vpretrain.vision.steering.views import BaselineViews

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
    """A learner after plain self-supervised learning: AdamW, linear warm-up, a cosine to a
    hundredth.
    """
    made = recipe.learner.model_copy(
        update={"teacher_momentum": section.teacher_momentum, "aligned_blocks": 1}
    )
    attention = recipe.learner.attention
    model = new_model(
        section.config, dtype=torch.float32, attention=attention, where="learner.prepare.config"
    )
    learner = assembled(made, model.to(device()), section.seed)
    stream = Stream(
        sets.stream,
        batch_size=section.batch_size,
        size=recipe.data.image_size,
        seed=section.seed,
        load_size=recipe.data.load_size,
    )
    parameters = [p for p in learner.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=section.weight_decay)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("making the learner (once)", total=section.steps)
        for step in range(section.steps):
            rising = min(1.0, (step + 1) / (section.warmup_steps + 1))
            falling = 0.01 + 0.99 * (1 + math.cos(math.pi * step / section.steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = section.learning_rate * rising * falling
            loss = _plain_loss(learner, next(stream))
            if not torch.isfinite(loss):
                raise Fault(
                    f"the loss is {float(loss.detach())} at step {step}; lower "
                    "learner.prepare.learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            learner.after_step(step / section.steps)
            description = f"making the learner (once): loss {float(loss.detach()):.3f}"
            progress.update(task, advance=1, description=description)
    return learner


def _plain_loss(learner: Learner, batch: object) -> torch.Tensor:
    if isinstance(learner, DinoLearner):
        return learner.loss(learner.forward(batch), BaselineViews())
    context = learner.forward(batch)  # type: ignore[arg-type]
    return learner.loss(context, detached(ijepa.baseline_task(context)))
