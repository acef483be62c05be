"""What keeps steering from doing harm: a guard that switches it off, and signs that a designer no
longer designs.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping

from vpretrain.method.roles import Bounds, State
from vpretrain.system import distributed

log = logging.getLogger(__name__)

EDGE = 0.01
"""The part of the range within which a mean counts as at a bound; where one bound is infinite, of
the other one's size, or of 1 where that is less."""


class Guard:
    """Do no harm: no steering while the mean gain over the last meta steps is negative.

    Args:
        window: how many meta steps the mean is over; until it is full the guard allows steering,
            and with 0 whatever happens.
    """

    def __init__(self, window: int) -> None:
        self.gains: deque[float] = deque(maxlen=window)

    def update(self, gain: float) -> None:
        """Takes the gain of one meta step."""
        self.gains.append(gain)

    @property
    def allows(self) -> bool:
        """Whether the designer's task may be used."""
        full = self.gains.maxlen and len(self.gains) == self.gains.maxlen
        return not full or sum(self.gains) >= 0

    def state_dict(self) -> State:
        """The gains in the window."""
        return {"gains": list(self.gains)}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        self.gains = deque(state["gains"], maxlen=self.gains.maxlen)


class Collapse:
    """Watches figures of a designer for standing at a bound, each by its mean over a window of meta
    steps.

    Of all designers ``agreement`` is watched: where halves of the feedback agree at 0 or below, it
    says no more than random vectors would.

    Args:
        window: meta steps, 0 to look at nothing. Before it is full nothing is said.
        bounds: what the designer says of its own figures (``designer.bounds``).
    """

    def __init__(self, window: int, bounds: Bounds) -> None:
        self.seen: deque[dict[str, float]] = deque(maxlen=window)
        self.bounds = dict(bounds)
        self.signs: list[str] = []
        self._said: set[str] = set()

    def update(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one meta step; a sign is logged when it is first seen, and not each
        time it comes back.
        """
        self.seen.append(
            {name: metrics[name] for name in (*self.bounds, _AGREEMENT) if name in metrics}
        )
        self.signs = list(self._signs())
        for sign in self.signs:
            if sign not in self._said and distributed.rank() == 0:
                log.warning(
                    "the designer may have collapsed: over the last %d meta steps %s",
                    len(self.seen),
                    sign,
                )
            self._said.add(sign)

    def _signs(self) -> Iterator[str]:
        if not self.seen.maxlen or len(self.seen) < self.seen.maxlen:
            return
        for name, (low, high) in self.bounds.items():
            mean, reach = self._mean(name), EDGE * _range(low, high)
            # One that can stand nowhere else was asked to stand there.
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
        """Over the window; None where it was not always said."""
        figures = [seen[name] for seen in self.seen if name in seen]
        return sum(figures) / len(figures) if len(figures) == len(self.seen) else None

    def state_dict(self) -> State:
        return {"seen": list(self.seen), "signs": self.signs}

    def load_state_dict(self, state: State) -> None:
        self.seen = deque(state["seen"], maxlen=self.seen.maxlen)
        self.signs = list(state["signs"])


_AGREEMENT = "agreement"


def _range(low: float, high: float) -> float:
    if math.isfinite(high - low):
        return high - low
    return max(1.0, *(abs(bound) for bound in (low, high) if math.isfinite(bound)))
