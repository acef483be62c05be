"""The recipe of a vision run: the core recipe plus data, learner, designer and probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import model_validator

from vpretrain.config.kinds import discover
from vpretrain.config.recipe import Recipe
from vpretrain.vision import steering
from vpretrain.vision.recipe.data import Data
from vpretrain.vision.recipe.evaluate import VisionEvaluate
from vpretrain.vision.recipe.learner import LearnerSection
from vpretrain.vision.steering.arms import ARMS, VisionArm
from vpretrain.vision.steering.masks import AscentArm

discover(steering)


class VisionRecipe(Recipe):
    """A recipe with ``modality: vision``."""

    arms = ARMS
    data: Data
    learner: LearnerSection
    designer: Annotated[VisionArm, ARMS.by_kind] = AscentArm()
    """The designer; arms that only replace the feedback use it too."""
    designers: Annotated[Mapping[str, VisionArm], ARMS.by_name] = {}
    """Keys of other designers, by kind, for arms that use them. A key that is not given is taken
    from ``designer``."""
    evaluate: VisionEvaluate = VisionEvaluate()

    @model_validator(mode="after")
    def _splits_exist(self) -> Self:
        for split in ("train", self.evaluate.split):
            if not self.data.evaluation.get(split):
                known = sorted(self.data.evaluation)
                raise ValueError(
                    f"data.evaluation has no {split!r}, which probes need; it has {known}"
                )
        if self.evaluate.split == "train":
            raise ValueError(
                "evaluate.split is train, which the probes learn from; name another of "
                "data.evaluation"
            )
        return self
