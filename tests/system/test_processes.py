from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any

import pytest

from vpretrain.system.processes import in_processes


class Squares:
    """Made once a process; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, number: int, *, tell: Callable[[Any], None]) -> tuple[int, int, int]:
        self.calls += 1
        tell(f"squaring {number}")
        if number == 13:
            raise ValueError("thirteen")
        if number == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number, self.calls, os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_call_is_answered_and_heard_of(jobs: int) -> None:
    told: list[Any] = []
    calls = [(n,) for n in range(5)]
    found = list(in_processes(Squares, calls, jobs, lambda call, said: told.append((call, said))))
    assert sorted(square for square, _, _ in found) == [0, 1, 4, 9, 16]
    assert sorted(told) == [((n,), f"squaring {n}") for n in range(5)]
    processes = {process for _, _, process in found}
    assert (processes == {os.getpid()}) == (jobs == 1)
    assert max(calls for _, calls, _ in found) >= 2  # made once, called several times


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_error_ends_it(jobs: int) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        list(in_processes(Squares, [(13,), (2,), (3,)], jobs, lambda call, said: None))


def test_a_process_that_is_killed_is_named_as_such() -> None:
    with pytest.raises(BrokenExecutor):
        list(in_processes(Squares, [(99,), (99,)], 2, lambda call, said: None))
