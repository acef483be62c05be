"""A learner that several commands need is made by one of them, the others wait."""

import multiprocessing
import time
from pathlib import Path

import pytest

from vpretrain.models.checkpoint_cache import made_once


def make_slowly(folder: Path, started: Path) -> Path:
    """Leaves a trace of every time that it is called."""
    with started.open("a") as handle:
        handle.write("started\n")
    time.sleep(0.5)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def ask(folder: Path, started: Path) -> None:
    assert made_once(folder, lambda: make_slowly(folder, started)) == folder


def test_of_several_processes_one_makes_it_and_all_have_it(tmp_path):
    folder, started = tmp_path / "cache" / "model", tmp_path / "started"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ask, args=(folder, started)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert started.read_text() == "started\n"


def test_one_that_failed_leaves_it_to_the_next(tmp_path):
    folder = tmp_path / "model"

    def fails() -> Path:
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            made_once(folder, fails)
    ask(folder, tmp_path / "started")
    assert (folder / "config.json").is_file()
