from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import pytest

from vpretrain.system.errors import Stopped
from vpretrain.system.processes import in_processes
from vpretrain.system.signals import Interruption


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
    result = list(in_processes(Squares, calls, jobs, lambda call, said: told.append((call, said))))
    assert sorted(square for square, _, _ in result) == [0, 1, 4, 9, 16]
    assert sorted(told) == [((n,), f"squaring {n}") for n in range(5)]
    processes = {process for _, _, process in result}
    assert (processes == {os.getpid()}) == (jobs == 1)
    assert max(calls for _, calls, _ in result) >= 2  # made once, called several times


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_error_ends_it(jobs: int) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        list(in_processes(Squares, [(13,), (2,), (3,)], jobs, lambda call, said: None))


def test_a_process_that_is_killed_is_named_as_such() -> None:
    with pytest.raises(BrokenExecutor):
        list(in_processes(Squares, [(99,), (99,)], 2, lambda call, said: None))


class Sleeper:
    """Saves when it is asked to stop, or at its third breath; one that does not heed it is gone."""

    def __call__(self, folder: Path, heeds: bool, *, tell: Callable[[Any], None]) -> str:
        if not heeds:
            tell(os.getpid())
            time.sleep(60)
        with Interruption() as stop:
            tell(os.getpid())
            while stop.by is None:
                time.sleep(0.02)
            (folder / str(os.getpid())).write_text(stop.by)
            raise Stopped(stop.by, "a breath")


def test_a_signal_to_one_worker_is_named_once(tmp_path: Path) -> None:
    def tell(call: tuple[Any, ...], pid: int) -> None:
        os.kill(pid, signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        list(in_processes(Sleeper, [(tmp_path, True)] * 2, 2, tell))
    assert str(stopped.value) == "SIGTERM; the same command goes on from there"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_parent_lets_the_workers_save(tmp_path: Path, by: signal.Signals) -> None:
    pids: list[int] = []

    def tell(call: tuple[Any, ...], pid: int) -> None:
        pids.append(pid)
        if len(pids) == 3:
            os.kill(os.getpid(), by)

    calls = [(tmp_path, True), (tmp_path, False), (tmp_path, True), (tmp_path, True)]
    with pytest.raises(Stopped, match=f"{by.name}; the same command"):
        list(in_processes(Sleeper, calls, 3, tell))
    saved = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(saved) < {str(pid) for pid in pids} and [*saved.values()] == ["SIGTERM"] * 2
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Dawdler:
    """Takes its time to be read in another process, as what imports torch does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return dawdle, (self.folder,)

    def __call__(self) -> Sleeper:
        return Sleeper()


def dawdle(folder: Path) -> Dawdler:
    (folder / str(os.getpid())).touch()
    time.sleep(60)
    return Dawdler(folder)


PARENT = """
import sys
from pathlib import Path
from tests.system.test_processes import Dawdler, Sleeper
from vpretrain.system.processes import in_processes

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    make = Dawdler(folder) if sys.argv[2] == "starting" else Sleeper
    calls = [(folder, True), (folder, False)]
    list(in_processes(make, calls, 2, lambda call, pid: (folder / str(pid)).touch()))
"""


@pytest.mark.parametrize("when", ["starting", "working"])
def test_a_parent_that_is_killed_takes_its_workers_along(tmp_path: Path, when: str) -> None:
    script, folder = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT)
    folder.mkdir()
    command = [sys.executable, str(script), str(folder), when]
    places = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": places}) as parent:
        while len(pids := [int(path.name) for path in folder.iterdir()]) < 2:
            assert parent.poll() is None
            time.sleep(0.05)
        assert all(alive(pid) for pid in pids)
        parent.kill()
    for _ in range(100):
        if not any(alive(pid) for pid in pids):
            break
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
