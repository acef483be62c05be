"""Declaration of the feedback kind ``reward``, and the checks of its rows."""

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
    """The policy gradient of the expected reward of sampled answers, scored by a checker."""

    reads_text: ClassVar[bool] = True

    checker: str
    """The checker that computes the reward of an answer: ``exact``, ``number``, ``contains``, or
    one registered in ``CHECKERS`` in Python."""
    answer: Answer | None = None
    """Regular expression, with one group, that finds the answer; null uses the checker's own."""
    checker_seconds: PositiveFloat = CHECKER_SECONDS
    """Time limit of one call of the checker. A batch on which it takes longer or raises an error is
    skipped."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Sampled answers to each prompt, whose rewards are compared with one another."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature. The gradient is that of the policy at this temperature."""
    new_tokens: PositiveInt = 256
    """Maximum number of tokens in a sampled answer."""
    baseline: Baseline = "leave_one_out"
    """``leave_one_out`` subtracts the mean reward of the prompt's other answers and is unbiased;
    ``group_normalised`` divides by the standard deviation of the rewards too, as GRPO does."""

    def problems(self, task: TaskRows, where: str) -> Iterator[Problem]:
        """Problems of an unknown checker, or of rows whose own solution gets no reward."""
        if self.checker not in CHECKERS:
            yield self._unknown(where)
        elif self.checker in DEFAULT_PATTERNS:  # custom checkers may reward solutions as they like
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
