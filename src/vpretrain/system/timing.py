"""Seconds: of a block, and of the named parts of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


@contextmanager
def timed(
    charge: Callable[[float], None], now: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Calls ``charge`` with the block's seconds when it ends, also by an exception.

    Work queued on an accelerator counts only where the block waits for it."""
    started = now()
    try:
        yield
    finally:
        charge(now() - started)


class Clock:
    """Seconds by section: ``with clock("meta"):``. A section within another is not in the other's.

    Args:
        synchronize: whether each section waits for what is queued on the accelerator.
        now: seconds on a clock that never goes back.

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
        """Charges what passed since the last change to the innermost section."""
        if self._synchronize:
            _synchronize()
        now = self._now()
        if self._open:
            innermost = self._open[-1]
            self.seconds[innermost] = self.seconds.get(innermost, 0.0) + now - self._last
        self._last = now


def synchronized_now() -> float:
    """Seconds on a clock that never goes back, once what is queued on the accelerator is done."""
    _synchronize()
    return time.perf_counter()


def _synchronize() -> None:
    import torch  # not above: the command line reads a clock before it needs torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Pace:
    """Says when the next word is due: at once, and then every so many seconds."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = seconds, now
        self._next = now()

    def due(self) -> bool:
        """Whether it is time; if so, the next time is ``seconds`` from now."""
        now = self._now()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


_CLOCK: ContextVar[Clock | None] = ContextVar("clock", default=None)


@contextmanager
def clocked(clock: Clock | None) -> Iterator[None]:
    """Within this block, in this thread, :func:`section` adds to the clock; None: to none."""
    token = _CLOCK.set(clock)
    try:
        yield
    finally:
        _CLOCK.reset(token)


def current_clock() -> Clock | None:
    """The clock of :func:`clocked`: for a backward pass, which may run in another thread."""
    return _CLOCK.get()


@contextmanager
def section(name: str) -> Iterator[None]:
    """A part of the step, added to the current clock if there is one."""
    clock = _CLOCK.get()
    if clock is None:
        yield
        return
    with clock(name):
        yield
