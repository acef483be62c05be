"""Recipes, learners and tasks of vision with their own types: what the benchmarks of pictures have
in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vpretrain.config import recipe as recipes
from vpretrain.method.wrappers import WrappedLearner
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.parts import AnyParts
from vpretrain.vision.data.loading import PictureSets
from vpretrain.vision.feedback.tasks import ClassTask
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.role import AnyPictureLearner, PictureLearner


def vision_recipe(source: str, overrides: Sequence[str] = ()) -> VisionRecipe:
    """A recipe of vision, read with its overrides."""
    recipe = recipes.load(source, overrides, schemas=SCHEMAS)
    assert isinstance(recipe, VisionRecipe)
    return recipe


def picture_learner(parts: AnyParts) -> AnyPictureLearner:
    """The learner with the backbone; of the arm `direct`, the one that it wraps."""
    learner = parts.learner
    if isinstance(learner, WrappedLearner):
        learner = learner.learner
    assert isinstance(learner, PictureLearner)
    return learner


def prepared_config(recipe: VisionRecipe) -> dict[str, Any]:
    """The configuration of the backbone that the recipe prepares."""
    assert recipe.learner.prepare is not None
    return recipe.learner.prepare.config


def class_count(sets: PictureSets, task: str) -> int:
    """Number of classes of a task by its name, `segmentation` or `classification`."""
    known = sets.tasks[task]
    assert isinstance(known, ClassTask)
    return known.classes
