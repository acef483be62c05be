"""Signals that stop a run after its current step, so that it can be resumed; and a time limit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""A scheduler's termination, Ctrl-C, and the early warning of schedulers (``sbatch
--signal=USR1@120``).
"""


class Interruption:
    """Context manager that records signals instead of acting on them.

    ``by`` is the name of the first one, or None. A second Ctrl-C raises KeyboardInterrupt. Outside
    of the main thread, where Python receives no signals, it has no effect.
    """

    def __init__(self) -> None:
        self.by: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.by = signal.Signals(number).name


@contextmanager
def interrupting() -> Iterator[None]:
    """Makes the other signals raise ``KeyboardInterrupt``, like Ctrl-C.

    An :class:`Interruption` inside the block takes precedence.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = [number for number in SIGNALS if number != signal.SIGINT]
    before = {number: signal.signal(number, signal.default_int_handler) for number in others}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class TimeUp(BaseException):
    """The block of :func:`time_limit` took too long.

    A BaseException, so that ``except Exception`` does not stop it.
    """


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limits the duration of a block of Python code; has no effect outside of the main thread.

    A call into C is interrupted when it returns to Python, or waits.

    Raises:
        TimeUp: the time was up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeUp(f"longer than {seconds:g} seconds")

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            left = max(outer - (time.monotonic() - began), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)
