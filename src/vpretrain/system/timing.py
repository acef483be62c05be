"""Seconds inside named parts of a step, for a profile; where nobody asks, nothing is clocked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds by section; a section within another is not in the other's.

    Attributes:
        seconds: what was clocked so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._last = 0.0

    def change(self, name: str | None) -> None:
        """Opens a section, or closes the one that was opened last (None)."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            inner = self._open[-1]
            self.seconds[inner] = self.seconds.get(inner, 0.0) + now - self._last
        self._last = now
        if name is None:
            self._open.pop()
        else:
            self._open.append(name)


_clock: Clock | None = None


@contextmanager
def clocked(clock: Clock | None) -> Iterator[None]:
    """Within this block sections are added to the clock; None: to none."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before


@contextmanager
def section(name: str) -> Iterator[None]:
    """A part of the step."""
    clock = _clock
    if clock is None:
        yield
        return
    clock.change(name)
    try:
        yield
    finally:
        clock.change(None)
