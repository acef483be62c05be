"""Progress lines and warnings before a run's first step."""

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
    """Logs a warning once per process, however often its data is read."""
    log.warning(text)


def phase(
    name: str, items: Iterable[ItemT], total: int, *, first_seconds: float = FIRST_SECONDS
) -> Iterator[ItemT]:
    """Yields the items, and prints lines like ``reading pictures: 120 of 500`` to standard error.

    The first line comes after two seconds and the next every ten, so short phases are silent. Only
    the main process prints, not its workers.

    Args:
        name: of the phase.
        items: the items to process.
        total: their number.
        first_seconds: time before the first line; longer for a phase that recurs often.
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
                # Not through a rich console of its own, which would disturb a bar on the screen.
                print(f"{name}: {number} of {total}{took}", file=sys.stderr, flush=True)
