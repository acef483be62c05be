"""The kind of feedback ``reward``: its keys, and rows whose own solution earns nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from vpretrain.language.feedback.checkers import (
    CHECKER_SECONDS,
    CHECKERS,
    DEFAULT_PATTERNS,
    checker_named,
)
from vpretrain.language.feedback.rewards import Baseline, Rewards, Sampling
from vpretrain.language.feedback.signals import (
    SIGNALS,
    FeedbackSite,
    Signal,
    TaskRows,
    problems_of_rows,
)
from vpretrain.language.recipe.common import Answer
from vpretrain.system.errors import Problem, UserError


@SIGNALS.declare("reward", "the expected reward of sampled answers: a policy gradient")
class RewardSignal(Signal):
    """Answers of the learner's own, scored by a checker: the policy gradient of their expected
    reward."""

    reads_text: ClassVar[bool] = True

    checker: str
    """What an answer earns: ``exact``, ``number`` or ``contains`` (or one put into ``CHECKERS`` in
    Python)."""
    answer: Answer | None = None
    """Null takes the checker's own."""
    checker_seconds: PositiveFloat = CHECKER_SECONDS
    """What one call of it may take; a batch on which it takes longer, or raises, is left out."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers drawn to each prompt; what one earns is compared with the others."""
    temperature: PositiveFloat = 1.0
    """The sampling temperature; the gradient is that of the policy at this temperature."""
    new_tokens: PositiveInt = 256
    """The longest answer."""
    baseline: Baseline = "leave_one_out"
    """``leave_one_out`` is unbiased; ``group_normalised`` divides by the spread of the rewards to a
    prompt, as GRPO does."""

    def problems(self, task: TaskRows, where: str) -> Iterator[Problem]:
        """An unknown checker; rows whose own solution earns nothing."""
        if self.checker not in CHECKERS:
            yield self._unknown(where)
        elif self.checker in DEFAULT_PATTERNS:  # what others pay for is theirs to say
            checker = checker_named(self.checker, self.answer)
            bad = [row for row in task.rows if not checker(row, row.text)]
            message = (
                f"the checker {self.checker} finds no answer in this solution; correct the row, "
                f"or set {where}.answer"
            )
            accepted = f"a solution with {self.answer or DEFAULT_PATTERNS[self.checker]}"
            yield from problems_of_rows(bad, accepted, message, where)

    def build(self, site: FeedbackSite) -> Rewards:
        if self.checker not in CHECKERS:
            raise UserError(self._unknown(site.where))
        return Rewards(
            site.samplers,
            site.task.rows,
            site.tokenizer,
            checker_named(self.checker, self.answer),
            sampling=Sampling(self.samples, self.temperature, self.new_tokens),
            baseline=self.baseline,
            seed=site.seed,
            where=site.where,
            checker_seconds=self.checker_seconds,
        )

    def _unknown(self, where: str) -> Problem:
        message = (
            "there is no such checker; name one of these, or put your own into CHECKERS in Python "
            "before the run is built"
        )
        return Problem(f"{where}.checker", self.checker, ", ".join(CHECKERS), message)
