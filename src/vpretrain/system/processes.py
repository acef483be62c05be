"""Calls in processes of their own, a few at a time."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

T = TypeVar("T")


def in_processes(
    make: Callable[[], Callable[..., T]],
    calls: Sequence[tuple[Any, ...]],
    jobs: int,
    tell: Callable[[tuple[Any, ...], Any], None],
) -> Iterator[T]:
    """What the calls return, in the order in which they end; after the first that raises, none is
    begun.

    One job runs in this process. More have a process each, and not a thread, since torch's thread
    count is one setting a process; spawned, since a forked torch may hang.

    Args:
        make: called once a process, can be pickled, and gives what answers the calls; its keyword
            ``tell`` sends word before the answer.
        calls: the arguments of each.
        jobs: calls at a time.
        tell: is given a call and what its worker tells meanwhile.

    Raises:
        BrokenProcessPool: a process ended before its answer.
    """
    if jobs == 1 or len(calls) < 2:
        worker = make()
        for call in calls:
            yield worker(*call, tell=partial(tell, call))
        return
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(calls))
    busy: dict[Connection, tuple[Any, ...]] = {}
    processes = []
    try:
        for _ in range(min(jobs, len(calls))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(make, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            busy[ours] = waiting.pop()
            ours.send(busy[ours])
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                kind, value = _received(pipe)
                if kind == "told":
                    tell(busy[pipe], value)
                elif kind == "raised":
                    raise value
                else:
                    del busy[pipe]
                    if waiting:
                        busy[pipe] = waiting.pop()
                        pipe.send(busy[pipe])
                    yield value
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(pipe: Connection) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise BrokenProcessPool("a process ended before its answer") from None
    return message


def _serve(make: Callable[[], Callable[..., Any]], pipe: Connection) -> None:
    try:
        worker = make()
        while (call := _next_call(pipe)) is not None:
            pipe.send(("done", worker(*call, tell=lambda word: pipe.send(("told", word)))))
    except (BrokenPipeError, KeyboardInterrupt):
        return  # nobody waits any more
    except BaseException as error:
        error.add_note("".join(traceback.format_exception(error)))
        pipe.send(("raised", error))


def _next_call(pipe: Connection) -> tuple[Any, ...] | None:
    try:
        call: tuple[Any, ...] = pipe.recv()
    except EOFError:
        return None
    return call
