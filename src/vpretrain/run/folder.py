"""The folder of a run: resolved recipe, metrics line by line, and the environment that produced
them.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from vpretrain.config.recipe import Recipe, dump
from vpretrain.run.records import Records
from vpretrain.run.tracking import Tracker
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.files import read_json, remove, write_json, write_text

log = logging.getLogger(__name__)

Change = dict[str, str]

PICTURES = "pictures"
"""Subfolder for pictures: a run's crops and predictions; in a comparison, what the designers of the
first seed make of a batch.
"""
_PACKAGES = ("vpretrain", "torch", "transformers", "tokenizers", "numpy", "scipy")


class RunFolder:
    """Writes the records of one run to its folder.

    Args:
        path: created if missing; files of an earlier run in it are replaced.
        recipe: written as ``recipe.yaml``, every value resolved.
        records: number of lines of ``metrics.jsonl`` that a resumed run keeps; later lines are cut
            off.
        data_hashes: of the data, by name; written to ``environment.json``.
        changes: see :func:`accepted_changes`; written to ``environment.json``.

    Attributes:
        kept: number of lines that were actually kept.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        *,
        records: int = 0,
        data_hashes: Mapping[str, str] | None = None,
        changes: Sequence[Change] = (),
    ) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "recipe.yaml", dump(recipe))
        write_environment(path, data_hashes or {}, changes)
        self._tracker = None
        if recipe.track is not None:
            self._tracker = Tracker(recipe.track, path, recipe, resumed=records > 0)
        self._metrics = Records(path / "metrics.jsonl", kept=records)
        self.kept, last = self._metrics.kept, self._metrics.last
        board, purge = path / "tensorboard", last and last["step"] + 1
        if not self.kept or not board.is_dir():
            remove(board)  # without records it is unknown which of its events are still valid
        self._board: SummaryWriter | None = SummaryWriter(str(board), purge_step=purge)

    def log(self, record: dict[str, Any]) -> bool:
        """Appends a line to ``metrics.jsonl``, and logs its figures to TensorBoard and the tracker.

        Returns whether the line was written; if so, it is on disk.
        """
        written = self._metrics.append(record)
        figures = {name: x for name, x in record.items() if isinstance(x, (int, float))}
        with self._onto_board() as board:
            for name, value in figures.items():
                if board is not None:
                    board.add_scalar(name, value, global_step=record["step"])
        if self._tracker is not None:
            self._tracker.log(figures, record["step"])
        return written

    def close(self) -> None:
        self._metrics.close()
        with self._onto_board() as board:
            if board is not None:
                board.close()
        if self._tracker is not None:
            self._tracker.close()

    @contextmanager
    def _onto_board(self) -> Iterator[SummaryWriter | None]:
        """Yields the TensorBoard writer, or None after a write error, which is logged; the run goes
        on.
        """
        try:
            yield self._board
        except OSError as error:
            log.warning("tensorboard/: not written: %s; the run goes on", error.strerror)
            self._board = None


@contextmanager
def drawing() -> Iterator[None]:
    """Context manager for drawing pictures of a finished run: an error is logged, not raised."""
    try:
        yield
    except Exception as error:
        log.warning("a picture could not be drawn: %s; the results are not affected", error)


def write_environment(
    folder: Path, data_hashes: Mapping[str, str], changes: Sequence[Change]
) -> None:
    """Writes ``environment.json``: :func:`environment`, hashes of the data, and accepted
    changes.
    """
    noted = {"changes": list(changes)} if changes else {}
    write_json(
        folder / "environment.json", environment() | {"data_hashes": dict(data_hashes)} | noted
    )


def changed_data(folder: Path, data_hashes: Mapping[str, str]) -> list[Problem]:
    """Returns one problem per data set that differs from the one the folder was begun with."""
    fix = (
        "these data have changed: put them back, name another folder with --out, or go on "
        "with --accept-changes"
    )
    before = _written_environment(folder).get("data_hashes")
    return [
        Problem(f"data of {name}", data_hashes.get(name, "none")[:16], str(digest)[:16], fix)
        for name, digest in (before.items() if isinstance(before, dict) else ())
        if data_hashes.get(name) != digest
    ]


def accepted_changes(folder: Path, problems: Sequence[Problem], *, accept: bool) -> list[Change]:
    """Returns all changes since a folder was begun, each as ``{what, before, now}``.

    Args:
        folder: of a run, a comparison or a sweep.
        problems: recipe keys and data that have changed now.
        accept: whether to continue in spite of them.

    Raises:
        UserError: something has changed, and it is not accepted.
    """
    if problems and not accept:
        raise UserError(*problems)
    now = [{"what": p.where, "before": p.accepted, "now": p.value} for p in problems]
    before = _written_environment(folder).get("changes")
    return [*(before if isinstance(before, list) else ()), *now]


def of_evaluation(changed: Problem) -> bool:
    """Whether scores before and after a change are of different rows, or by different rules."""
    keys = ("evaluate.", "data.evaluation", "data of evaluation")
    return changed.where.startswith(keys) and changed.where != "evaluate.every"


def refuse_other_scores(step0: Path, changed: Sequence[Problem]) -> None:
    """Raises UserError if a folder has scores, in the file ``step0``, of other rows or by other
    rules than from now on: they would be compared with new ones."""
    scored = [problem for problem in changed if of_evaluation(problem)]
    if scored and step0.is_file():
        message = f"the results beside {step0} were scored before this changed: name another folder"
        raise UserError(*(replace(problem, message=message) for problem in scored))


def _written_environment(folder: Path) -> dict[str, Any]:
    """Returns ``environment.json``; empty if missing or unreadable, which must not stop a run."""
    try:
        written = read_json(folder / "environment.json")
    except (OSError, ValueError):
        return {}
    return written if isinstance(written, dict) else {}


def environment() -> dict[str, Any]:
    """Returns versions, hardware, git commit and command: what is needed to reproduce a figure."""
    return {
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "git_commit": _commit(),
        "command": shlex.join([*_program(), *sys.argv[1:]]),
    }


def _program() -> list[str]:
    """Returns ``vpretrain``, under whatever name it was called, or the script that runs."""
    name = Path(sys.argv[0]).name
    return ["vpretrain"] if name in ("vpretrain", "__main__.py") else ["python", name]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _commit() -> str | None:
    """Returns the git commit of this source tree; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "rev-parse", "HEAD"]
    try:
        out = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
