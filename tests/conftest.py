"""What every test shares: no network, one thread, commands in this process, and the folder of real
inputs where there is one.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported

import gc
import json
import logging
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from vpretrain import cli, report

torch.set_num_threads(1)
gc.disable()  # until all is imported, see pytest_collection_finish
# several lines for every tensor of a checkpoint, which pytest would keep for a test that fails
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.INFO)


def find_shared_data() -> Path:
    """The folder of real inputs; skips the calling test where it is missing."""
    named = os.environ.get("VPRETRAIN_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        origin = "named by $VPRETRAIN_DATA" if named else "$VPRETRAIN_DATA is not set"
        pytest.skip(f"This test reads real inputs, and there is no folder {folder} ({origin}).")
    return folder


def pytest_collection_finish() -> None:
    """What is imported by now stays, so that no garbage collection looks through it again: that was
    half of the time of tests that ask for one.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data"):
        find_shared_data()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds ``gsm8k/``, ``mathematics/``, ``prose/`` and ``camvid/``."""
    return find_shared_data()


@dataclass
class Called:
    """What a command left: its exit code, and what it wrote to both outputs."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as JSON; refuses anything beside one document."""
        return json.loads(self.out)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have imported already what this process has: a second each in the place of ten.

    tests/reliability/test_studies.py starts them as people do.
    """
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: fork)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of tables and text alone: drawing takes most of the time, and tests/report does it."""
    monkeypatch.setattr(report, "write_plots", lambda *given: [])
    monkeypatch.setattr(sys.modules["vpretrain.report.page"], "panel", lambda chart, large: "")


@pytest.fixture(scope="session")
def parser() -> Any:
    """The command line as typer builds it, at every call anew where it is not kept."""
    return typer.main.get_command(cli.app)


@pytest.fixture
def command(
    parser: Any,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_plots: None,
    forked: None,
) -> Callable[..., Called]:
    """``vpretrain ARGUMENTS`` in this process, which has imported torch and transformers already.

    Both outputs hold also what C++ wrote to them. Reports come without their plots.
    """

    monkeypatch.setattr(cli, "app", parser)

    def call(*arguments: object) -> Called:
        monkeypatch.setattr("sys.argv", ["vpretrain", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return Called(code, out, err)

    return call
