"""What a person is told before a run's first step: of its data, and of parts that take long."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeVar

from vpretrain.system import distributed

FIRST_SECONDS, EVERY_SECONDS = 2.0, 10.0
ItemT = TypeVar("ItemT")
log = logging.getLogger(__name__)


@cache
def warn_once(text: str) -> None:
    """A warning, once a process, however often the data that it is of are read in it."""
    log.warning(text)


def phase(
    name: str, items: Iterable[ItemT], total: int, *, first_seconds: float = FIRST_SECONDS
) -> Iterator[ItemT]:
    """The items, with lines like ``reading pictures: 120 of 500`` on standard error.

    The first line comes after two seconds and the next every ten: a short phase is silent, and no
    long one stays so. Only the main process writes, and none of its workers.

    Args:
        name: of the phase.
        items: whatever is worked through.
        total: how many there are.
        first_seconds: before the first line; more for what comes again and again.
    """
    started = shown = time.monotonic()
    wait = first_seconds
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if (now - shown >= wait or (number == total and shown > started)) and total > 1:
            shown, wait = now, EVERY_SECONDS
            if distributed.is_main_process() and multiprocessing.parent_process() is None:
                took = f" in {now - started:.0f} s" if number == total else ""
                # Not by a rich console of its own: a bar that is on the screen keeps its place.
                print(f"{name}: {number} of {total}{took}", file=sys.stderr, flush=True)
