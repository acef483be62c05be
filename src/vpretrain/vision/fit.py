"""Check that a recipe's sizes and counts fit its backbone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vpretrain.run.resources import shortages
from vpretrain.system.errors import Problem, UserError
from vpretrain.vision.backbone import Backbone
from vpretrain.vision.loading import new_model
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.steering.arms import ARMS


def shape_problems(recipe: VisionRecipe) -> list[Problem]:
    """Return the problems of a backbone made from a configuration, without allocating weights."""
    section = recipe.learner
    config, where = section.config, "learner.config"
    if config is None and section.model is None and section.prepare is not None:
        config, where = section.prepare.config, "learner.prepare.config"
    if config is None:
        return []
    attention = section.attention
    with torch.device("meta"):
        shapes = new_model(config, dtype=torch.float32, attention=attention, where=where)
    # The teacher or target encoder is a copy.
    short = shortages(shapes, recipe.checkpoint, followers=1)
    return [*short, *_untiled(recipe, shapes.config.patch_size, where)]


def check_fit(recipe: VisionRecipe, backbone: Backbone) -> None:
    """Check crops, pictures, blocks and candidates against the learner's backbone and head.

    Raises:
        UserError: with all keys that do not fit.
    """
    problems = [*_untiled(recipe, backbone.patch_size, "the learner")]
    depth, prototypes = len(backbone.blocks), recipe.learner.head.prototypes
    for key, count, most, message in (
        ("evaluate.blocks", recipe.evaluate.blocks, depth, "so many blocks"),
        ("data.feedback.head.blocks", recipe.data.feedback.head.blocks, depth, "so many blocks"),
        (
            "designer.candidates",
            ARMS.section_of(recipe).most_candidates,
            prototypes,
            "so many prototypes (`null` takes all)",
        ),
    ):
        if count > most:
            message = f"the learner does not have {message}"
            problems.append(Problem(key, str(count), f"1 to {most}", message))
    if problems:
        raise UserError(*problems)


def _untiled(recipe: VisionRecipe, patch: int, what: str) -> Iterator[Problem]:
    for key, sides in _sides(recipe):
        if any(side % patch for side in sides):
            shown, accepted = " x ".join(map(str, sides)), f"multiples of {patch}"
            yield Problem(key, shown, accepted, f"the patches of {what} do not tile it")


def _sides(recipe: VisionRecipe) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the sizes of the backbone's inputs in pixels, by recipe key."""
    data, crops, section = recipe.data, recipe.learner.crops, recipe.evaluate
    if recipe.learner.kind == "dino":
        yield "learner.crops.global_size", (crops.global_size,)
        if crops.local_count:
            yield "learner.crops.local_size", (crops.local_size,)
    else:
        yield "data.image_size", (data.image_size,)
    for name, searched in section.retrieval.items():
        yield f"evaluate.retrieval.{name}.size", searched.size
    parts = enumerate(data.feedback.sets)
    labelled = {f"data.feedback.sets.{i}.pictures": part.pictures for i, part in parts}
    for split in ("train", section.split):
        specs = enumerate(data.evaluation[split])
        labelled |= {f"data.evaluation.{split}.{i}": pictures for i, pictures in specs}
    for where, pictures in labelled.items():
        yield f"{where}.size", pictures.size or (data.image_size, data.image_size)
