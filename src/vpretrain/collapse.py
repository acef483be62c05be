"""Designer collapse: signs, in what the meta steps of late have said, that a designer no longer designs."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from vpretrain import distributed

log = logging.getLogger(__name__)

EDGE = 0.01
"""How near a bound counts as at it, as a share of the range."""


class Collapse:
    """Watches the figures of designers by their names; those that a designer does not have are not looked at.

    Each is judged by its mean over the window: ``gate`` at 0 (and no ``weight_spread``) or at its bound, ``entropy`` of targets
    at its bound, ``mask_mean`` at 0 or 1, ``mask_std`` (within a mask) at 0, and ``agreement`` of the feedback's halves at 0
    or below, where feedback says no more than random vectors would.

    Args:
        window: meta steps, 0 to look at nothing. Before it is full nothing is said.
        bounds: the highest ``gate`` there can be (1 where it is not said), and the highest ``entropy`` of targets in nats.
    """

    def __init__(self, window: int, bounds: Mapping[str, float] | None = None) -> None:
        self.seen: deque[dict[str, float]] = deque(maxlen=window)
        bounds = bounds or {}
        self.gate, self.entropy = bounds.get("gate", 1.0), bounds.get("entropy", math.inf)
        self.signs: list[str] = []
        self._said: set[str] = set()

    def hear(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one meta step; a sign is logged when it is first seen, and not each time it comes back."""
        self.seen.append({name: metrics[name] for name in _WATCHED if name in metrics})
        self.signs = list(self._signs())
        for sign in self.signs:
            if sign not in self._said and distributed.rank() == 0:
                log.warning("the designer may have collapsed: over the last %d meta steps %s", len(self.seen), sign)
            self._said.add(sign)

    def _signs(self) -> Iterator[str]:
        if not self.seen.maxlen or len(self.seen) < self.seen.maxlen:
            return
        mean = {
            name: sum(figures[name] for figures in self.seen) / len(self.seen)
            for name in _WATCHED
            if all(name in figures for figures in self.seen)
        }
        if "gate" in mean and self.gate:
            if mean["gate"] <= EDGE * self.gate and mean.get("weight_spread", 0.0) <= EDGE:
                yield "the gate was shut: the task is the plain one"
            elif mean["gate"] >= (1 - EDGE) * self.gate:
                yield "the gate stood at its bound"
        if "entropy" in mean and mean["entropy"] >= (1 - EDGE) * self.entropy:
            yield "targets were even over their candidates"
        if "mask_mean" in mean and not EDGE < mean["mask_mean"] < 1 - EDGE:
            yield "masks hid all or nothing"
        if mean.get("mask_std", 1.0) <= EDGE:
            yield "masks were even over their pictures"
        if mean.get("agreement", 1.0) <= 0:
            yield "halves of the feedback agreed no better than random ones do"

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {"seen": list(self.seen), "signs": self.signs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.seen = deque(state["seen"], maxlen=self.seen.maxlen)
        self.signs = list(state["signs"])


_WATCHED = ("gate", "weight_spread", "entropy", "mask_mean", "mask_std", "agreement")
