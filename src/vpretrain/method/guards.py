"""Safeguards: a guard that switches harmful steering off, and detection of a collapsed designer."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping

from vpretrain.method.roles import Bounds, State
from vpretrain.system import distributed

log = logging.getLogger(__name__)

EDGE = 0.01
"""Fraction of the range within which a mean counts as being at a bound. If one bound is infinite,
the range is taken as the absolute value of the other, but at least 1.
"""


class Guard:
    """Switches steering off while the mean gain over the last meta steps is negative.

    Args:
        window: number of meta steps in the mean. Until the window is full, and always if it is 0,
            steering is allowed.
    """

    def __init__(self, window: int) -> None:
        self.gains: deque[float] = deque(maxlen=window)

    def update(self, gain: float) -> None:
        """Records the gain of one meta step."""
        self.gains.append(gain)

    @property
    def allows(self) -> bool:
        """Whether the designer's task may be used."""
        full = self.gains.maxlen and len(self.gains) == self.gains.maxlen
        return not full or sum(self.gains) >= 0

    def state_dict(self) -> State:
        """Returns the gains in the window."""
        return {"gains": list(self.gains)}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        self.gains = deque(state["gains"], maxlen=self.gains.maxlen)


class Collapse:
    """Detects designer figures that stay at a bound, by their means over a window of meta steps.

    ``agreement`` is watched for every designer: if the halves of the feedback agree at 0 or below,
    the feedback carries no more information than random vectors.

    Args:
        window: number of meta steps; 0: nothing is watched. No sign is raised before the window is
            full.
        bounds: bounds of the designer's figures (``designer.bounds``).

    Attributes:
        signs: descriptions of the present signs of collapse.
    """

    def __init__(self, window: int, bounds: Bounds) -> None:
        self.history: deque[dict[str, float]] = deque(maxlen=window)
        self.bounds = dict(bounds)
        self.signs: list[str] = []
        self._logged: set[str] = set()

    def update(self, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one meta step. Each sign is logged once, when it first appears."""
        self.history.append(
            {name: metrics[name] for name in (*self.bounds, _AGREEMENT) if name in metrics}
        )
        self.signs = list(self._signs())
        for sign in self.signs:
            if sign not in self._logged and distributed.rank() == 0:
                log.warning(
                    "the designer may have collapsed: over the last %d meta steps %s",
                    len(self.history),
                    sign,
                )
            self._logged.add(sign)

    def _signs(self) -> Iterator[str]:
        if not self.history.maxlen or len(self.history) < self.history.maxlen:
            return
        for name, (low, high) in self.bounds.items():
            mean, reach = self._mean(name), EDGE * _range(low, high)
            # Equal bounds: the recipe fixed the figure there.
            if mean is None or low == high:
                continue
            if mean <= low + reach:
                yield f"{name} stood at {low:g}, the lowest there is"
            elif mean >= high - reach:
                yield f"{name} stood at {high:g}, the highest there is"
        agreement = self._mean(_AGREEMENT)
        if agreement is not None and agreement <= 0:
            yield "halves of the feedback agreed no better than random ones do"

    def _mean(self, name: str) -> float | None:
        """Returns the mean over the window; None if any meta step in it lacks the figure."""
        values = [figures[name] for figures in self.history if name in figures]
        return sum(values) / len(values) if len(values) == len(self.history) else None

    def state_dict(self) -> State:
        return {"seen": list(self.history), "signs": self.signs}

    def load_state_dict(self, state: State) -> None:
        self.history = deque(state["seen"], maxlen=self.history.maxlen)
        self.signs = list(state["signs"])
        self._logged = set(self.signs)


_AGREEMENT = "agreement"


def _range(low: float, high: float) -> float:
    if math.isfinite(high - low):
        return high - low
    return max([1.0, *(abs(bound) for bound in (low, high) if math.isfinite(bound))])
