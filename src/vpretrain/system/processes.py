"""Runs calls in separate processes, a few at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from vpretrain.system.errors import Stopped
from vpretrain.system.signals import Interruption

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.2
_PARENTS_OWN = {signal.SIGINT, signal.SIGUSR1}  # a terminal also sends Ctrl-C to the workers


def in_processes(
    make: Callable[[], Callable[..., T]],
    calls: Sequence[tuple[Any, ...]],
    jobs: int,
    tell: Callable[[tuple[Any, ...], Any], None],
) -> Iterator[T]:
    """Yields the results of the calls as they finish; after one raises, no more are started.

    A single job runs in this process. Several run in a process each, not in threads, because
    torch's thread count is a process-wide setting. Processes are spawned, since a forked torch may
    hang. They end when this process ends in any way. A signal to stop is passed on as SIGTERM: a
    call that handles it raises ``Stopped`` or returns; any other ends with its process.

    Args:
        make: called once per process, must be picklable, and returns the function that answers the
            calls; its keyword argument ``tell`` sends messages before the result.
        calls: the arguments of each call.
        jobs: number of calls at a time.
        tell: called with a call and a message of its worker.

    Raises:
        BrokenProcessPool: a process ended before its result.
        Stopped: a signal asked for it, and a call has no result.
    """
    if jobs == 1 or len(calls) < 2:
        worker = make()
        for call in calls:
            yield worker(*call, tell=partial(tell, call))
        return
    with Interruption() as stop, _workers(make, min(jobs, len(calls))) as workers:
        yield from _answers(workers, calls, tell, stop)


def _answers(
    workers: Mapping[Connection, BaseProcess],
    calls: Sequence[tuple[Any, ...]],
    tell: Callable[[tuple[Any, ...], Any], None],
    stop: Interruption,
) -> Iterator[Any]:
    waiting = list(reversed(calls))
    busy: dict[Connection, tuple[Any, ...]] = {}
    unanswered = asked = False

    def give(pipe: Connection) -> None:
        busy[pipe] = waiting.pop()
        pipe.send(busy[pipe])

    for worker in workers:
        give(worker)
    while busy:
        if stop.by and not asked:
            asked = True
            for process in workers.values():
                process.terminate()
        for pipe in wait(list(busy), timeout=_SECONDS_BETWEEN_LOOKS):
            assert isinstance(pipe, Connection)
            kind, value = _received(pipe)
            if kind == "told":
                tell(busy[pipe], value)
                continue
            del busy[pipe]
            if kind == "stopped" or (kind == "ended" and asked):
                stop.by, unanswered = stop.by or value, True
            elif kind == "ended":
                raise BrokenProcessPool(value)
            elif kind == "raised":
                raise value
            else:
                if waiting and not stop.by:
                    give(pipe)
                yield value
    if unanswered or waiting:
        raise Stopped(stop.by or "a signal to a worker")


@contextlib.contextmanager
def _workers(
    make: Callable[[], Callable[..., Any]], count: int
) -> Iterator[dict[Connection, BaseProcess]]:
    """Yields processes by the pipe to each; kills them on leaving the block."""
    workers: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(count):
            process, ours = spawned(_serve)
            workers[ours] = process
            ours.send(make)
        yield workers
    finally:
        for worker in workers.values():
            worker.kill()
            worker.join()


def spawned(target: Callable[..., None], *given: Any) -> tuple[BaseProcess, Connection]:
    """Starts a process of ``target(*given, pipe)`` that ignores Ctrl-C; returns it and its pipe."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # else the first start would unblock the signals
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*given, theirs), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_OWN)  # the process inherits the mask
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return process, ours


def _received(pipe: Connection) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = pipe.recv()
    except (EOFError, ConnectionResetError):
        return "ended", "a process ended before its answer"
    return message


def _serve(pipe: Connection) -> None:
    # Before receiving the worker, which imports torch: the parent may end meanwhile.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # the parent is gone
        try:
            worker = pipe.recv()()
            while (call := _next_call(pipe)) is not None:
                pipe.send(("done", worker(*call, tell=lambda word: pipe.send(("told", word)))))
        except (BrokenPipeError, KeyboardInterrupt):
            raise
        except Stopped as stopped:
            pipe.send(("stopped", stopped.by))
        except BaseException as error:
            error.add_note("".join(traceback.format_exception(error)))
            pipe.send(("raised", error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _next_call(pipe: Connection) -> tuple[Any, ...] | None:
    try:
        call: tuple[Any, ...] = pipe.recv()
    except (EOFError, ConnectionResetError):
        return None
    return call
