"""The recipe section ``sweep``: search space, objectives and cost."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from vpretrain.config.recipe import Budget, Section


class Range(Section):
    """Numbers from ``low`` to ``high``, both included; integers if both and the step are."""

    low: int | float
    high: int | float
    log: bool = False
    """Whether to sample uniformly on a logarithmic scale."""
    step: int | float | None = None
    """Restricts the values to ``low``, ``low + step``, ..."""

    @model_validator(mode="after")
    def _goes_up(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: high has to be more")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and takes no step")
        if self.step is not None and self.step <= 0:
            raise ValueError("step has to be above 0")
        return self


Alternatives = Annotated[list[Any], Field(min_length=2)]


class Sweep(Section):
    """A hyperparameter search (``vpretrain sweep``)."""

    keys: Annotated[dict[str, Range | Alternatives], Field(min_length=1)]
    """By dotted key of the recipe: a range of numbers, or a list of values to choose from."""
    objectives: Annotated[list[str], Field(min_length=1)]
    """Metrics at the end of a trial, such as ``dev/nll``; with several, the Pareto front is kept.
    Select on dev and report on test: a metric used for selection is no longer an unbiased result.
    """
    budget: Budget | None = None
    """Budget of a trial; null takes the recipe's budget."""
    prune: bool = False
    """Whether to stop a trial that is worse at an intermediate evaluation (``evaluate.every``) than
    the median of the other trials at theirs.
    """

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key in self.keys:
            if not re.fullmatch(r"\w+(\.\w+)*", key):
                raise ValueError(f"{key!r} is no dotted key, as learner.learning_rate is one")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("an objective is given twice")
        if self.prune and len(self.objectives) > 1:
            raise ValueError(
                "trials with several objectives have no median: set prune to false, or name "
                "one objective"
            )
        return self
