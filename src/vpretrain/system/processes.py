"""Calls in processes of their own, a few at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

T = TypeVar("T")


def in_processes(
    call: Callable[..., T],
    arguments: Sequence[tuple[Any, ...]],
    jobs: int,
    *,
    set_up: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> Iterator[T]:
    """What the calls return, in the order in which they end; after the first that raises, none is
    begun.

    Processes and not threads, since torch's thread count is one setting a process; spawned, since a
    forked torch may hang.

    Args:
        call: at the top of a module, as ``set_up``.
        arguments: of each call.
        jobs: calls at a time.
        set_up: called in every process before its first call.
        given: its arguments.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(jobs, len(arguments)), context, initializer=set_up, initargs=given
    ) as pool:
        waiting = [pool.submit(call, *each) for each in arguments]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
