"""Timing of blocks, and of the named parts of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


@contextmanager
def timed(
    charge: Callable[[float], None], now: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Calls ``charge`` with the block's duration in seconds when it ends, also by an exception.

    Work queued on an accelerator counts only if the block waits for it.
    """
    started = now()
    try:
        yield
    finally:
        charge(now() - started)


class Clock:
    """Accumulates seconds by section: ``with clock("meta"):``.

    A nested section is not counted in the outer one.

    Args:
        synchronize: whether each section waits for work queued on the accelerator.
        now: a monotonic clock, in seconds.

    Attributes:
        seconds: by section, so far.
    """

    def __init__(
        self, *, synchronize: bool = False, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronize, self._now = synchronize, now
        self._open: list[str] = []
        self._last = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        """Charges the time since the last change to the innermost section."""
        if self._synchronize:
            _synchronize()
        now = self._now()
        if self._open:
            innermost = self._open[-1]
            self.seconds[innermost] = self.seconds.get(innermost, 0.0) + now - self._last
        self._last = now


def synchronized_now() -> float:
    """Returns a monotonic time in seconds, after waiting for work queued on the accelerator."""
    _synchronize()
    return time.perf_counter()


def _synchronize() -> None:
    import torch  # imported here because the command line uses a clock before it needs torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Pace:
    """Limits how often something is reported: at once, then at most once per interval."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = seconds, now
        self._next = now()

    def due(self) -> bool:
        """Returns whether a report is due; if so, the next one is due in ``seconds``."""
        now = self._now()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


_CLOCK: ContextVar[Clock | None] = ContextVar("clock", default=None)


@contextmanager
def clocked(clock: Clock | None) -> Iterator[None]:
    """Sets the clock that :func:`section` adds to, in this block and thread; None: no clock."""
    token = _CLOCK.set(clock)
    try:
        yield
    finally:
        _CLOCK.reset(token)


def current_clock() -> Clock | None:
    """Returns the clock of :func:`clocked`, for a backward pass in another thread."""
    return _CLOCK.get()


@contextmanager
def section(name: str) -> Iterator[None]:
    """Times a part of the step on the current clock, if there is one."""
    clock = _CLOCK.get()
    if clock is None:
        yield
        return
    with clock(name):
        yield
