"""The recipe of a language run: data, learner and designer, besides the keys of every recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import model_validator

from vpretrain.config.kinds import discover
from vpretrain.config.recipe import Recipe
from vpretrain.language import feedback as feedback_kinds
from vpretrain.language import steering
from vpretrain.language.recipe.data import Data
from vpretrain.language.recipe.evaluate import LanguageEvaluate
from vpretrain.language.recipe.learner import LearnerSection
from vpretrain.language.recipe.posttraining import Posttraining
from vpretrain.language.recipe.value import LanguageValue
from vpretrain.language.steering.arms import ARMS, LanguageArm
from vpretrain.language.steering.rules import TokenWeightsArm
from vpretrain.method.roles import AlignmentName

discover(steering)
discover(feedback_kinds)


class LanguageRecipe(Recipe):
    """A recipe with ``modality: language``."""

    arms = ARMS
    data: Data
    learner: LearnerSection
    value: LanguageValue = LanguageValue()
    designer: Annotated[LanguageArm, ARMS.by_kind] = TokenWeightsArm()
    """The designer. Arms that only replace the feedback use it too."""
    designers: Annotated[Mapping[str, LanguageArm], ARMS.by_name] = {}
    """Configuration of other designers, by kind, for arms that steer with them. A key left out here
    takes the value of the same key in ``designer``."""
    evaluate: LanguageEvaluate = LanguageEvaluate()
    posttraining: Posttraining = Posttraining()

    @property
    def alignment(self) -> AlignmentName:
        """The alignment this run uses: the arm's own, or else ``value.alignment``.

        Raises:
            UserError: there is no such arm.
        """
        return ARMS.section_of(self).valued_by or self.value.alignment

    @model_validator(mode="after")
    def _split_exists(self) -> Self:
        for split in (self.evaluate.split, *self.evaluate.also):
            if split not in self.data.evaluation:
                raise ValueError(
                    f"evaluate.split or also names {split!r}; data.evaluation has "
                    f"{sorted(self.data.evaluation)}"
                )
        if self.value.shrink and self.data.feedback.batches < 2:
            raise ValueError(
                "value.shrink compares feedback batches: set data.feedback.batches to 2 or "
                "more, or shrink to false"
            )
        return self

    @model_validator(mode="after")
    def _has_domains(self) -> Self:
        section = self.value.meta_batch
        if section is None or not section.per_domain:
            return self
        if not any(task.sources for task in self.data.feedback.named().values()):
            raise ValueError(
                "value.meta_batch.per_domain is true, and no task names sources of the stream: "
                "give data.feedback.tasks their sources"
            )
        if self.alignment == "lower_bound":
            raise ValueError(
                "value.alignment: lower_bound has no mean over domains: choose another, or set "
                "value.meta_batch.per_domain to false"
            )
        return self

    @model_validator(mode="after")
    def _attention_serves(self) -> Self:
        if self.learner.attention != "flash_attention_2":
            return self
        if ARMS.section_of(self).uses_feedback:
            raise ValueError(
                "learner.attention: flash_attention_2 has kernels neither for float32 nor for "
                "forward mode, by which values are taken: set it to sdpa, whose kernels are as "
                "fast on most accelerators"
            )
        if self.data.packing and self.data.batch_size > 1:
            raise ValueError(
                "under attention: flash_attention_2 the documents of a batch of several rows would "
                "see each other (transformers tells them apart by position within a single row "
                "only): set data.batch_size to 1 with a longer window, or attention to sdpa"
            )
        return self
