"""Consumption of a run against its budget, which drives its end, its schedules and progress
bars.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

from vpretrain.config.recipe import Budget
from vpretrain.system.timing import timed


@dataclass
class Spending:
    """Resources used so far. Under data parallelism every rank holds the same global figures.

    Args:
        steps: learner steps.
        tokens: tokens (vision: images) of the stream, summed over ranks.
        flops: floating-point operations, including designer and meta steps.
        seconds: time spent in blocks of :meth:`timing`.

    Raises:
        ValueError: a figure is negative or not finite.
    """

    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._refuse_negative(**asdict(self))

    def add(
        self, *, steps: int = 0, tokens: int = 0, flops: float = 0.0, seconds: float = 0.0
    ) -> None:
        """Adds to the figures.

        Raises:
            ValueError: a figure is negative or not finite; nothing is added.
        """
        self._refuse_negative(steps=steps, tokens=tokens, flops=flops, seconds=seconds)
        self.steps += steps
        self.tokens += tokens
        self.flops += flops
        self.seconds += seconds

    def timing(self, now: Callable[[], float] = time.monotonic) -> AbstractContextManager[None]:
        """Returns a context manager that charges the seconds of its block.

        Evaluation and checkpoints stay outside, and are free.

        See :func:`vpretrain.system.timing.timed`.
        """
        return timed(lambda seconds: self.add(seconds=seconds), now)

    def fraction(self, budget: Budget, since: Spending | None = None) -> float:
        """Returns the used fraction of the budget, in [0, 1]: the largest over the limits given.

        Args:
            budget: at least one limit.
            since: spending at which the count begins, less than the budget; the fraction is then
                relative to what was left at that point.
        """
        before = Spending() if since is None else since
        fractions = (
            (getattr(self, name) - getattr(before, name)) / (limit - getattr(before, name))
            for name, limit in budget
            if limit is not None
        )
        return min(1.0, max(fractions))

    def exhausted(self, budget: Budget) -> bool:
        """Returns whether a limit of the budget is used up, which is when :meth:`fraction` is 1."""
        return self.fraction(budget) >= 1.0

    def state_dict(self) -> dict[str, int | float]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        figures = {name: type(here)(state[name]) for name, here in asdict(self).items()}
        self._refuse_negative(**figures)
        for name, figure in figures.items():
            setattr(self, name, figure)

    @staticmethod
    def _refuse_negative(**figures: float) -> None:
        for name, figure in figures.items():
            if not 0 <= figure < math.inf:
                raise ValueError(f"{name} is {figure}; what a run uses is finite and at least 0")
