"""Sends a run's records to wandb or trackio, in addition to ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vpretrain.config.recipe import Recipe, Track
from vpretrain.system.errors import Problem, user_error
from vpretrain.system.files import read_json, write_json

log = logging.getLogger(__name__)

_NAMED_BY = {"wandb": ("id", "name"), "trackio": ("name",)}
"""Arguments of ``init`` by which a tracker recognises a resumed run."""
_NAME = "tracked.json"


def missing(track: Track | None) -> Iterator[Problem]:
    """Yields a problem if the tracker's package is not installed."""
    # wandb writes to a folder of its own name, which Python takes for a namespace package.
    if track is not None and getattr(find_spec(track.kind), "origin", None) is None:
        message = "this package is not installed; install it, or leave the key out"
        yield Problem("track.kind", track.kind, f"pip install {track.kind}", message)


class Tracker:
    """Common interface to wandb and trackio, which share three functions: init, log, finish.

    An error after the start is logged once, and the run continues without the tracker.

    Args:
        track: which tracker, and the project.
        folder: of the run; stores the tracker's name for the run, so that a resumed run continues
            it.
        recipe: its values are shown with the run.
        resumed: whether records came before.

    Raises:
        UserError: the tracker cannot start (no package, no account).
    """

    def __init__(self, track: Track, folder: Path, recipe: Recipe, *, resumed: bool) -> None:
        name = _name(folder, resumed=resumed)
        self.kind, self._broken = track.kind, False
        try:
            with redirect_stdout(sys.stderr):  # standard output is reserved for --json
                self._module: Any = import_module(track.kind)
                self._module.init(
                    project=track.project,
                    config=recipe.model_dump(mode="json"),
                    resume="allow",
                    **dict.fromkeys(_NAMED_BY[track.kind], name),
                )
        except Exception as error:  # each has its own for no account, no network, an old version
            message = f"{track.kind} does not begin ({_line(error)}); see to it, or leave this out"
            raise user_error("track.kind", message, value=track.kind) from error

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Logs the figures of a step, except its number, a name that both trackers reserve."""
        shown = {name: figure for name, figure in figures.items() if name != "step"}
        self._call("log", shown, step=step)

    def close(self) -> None:
        """Waits until everything is sent."""
        self._call("finish")

    def _call(self, function: str, *given: Any, **named: Any) -> None:
        if self._broken:
            return
        try:
            with redirect_stdout(sys.stderr):
                getattr(self._module, function)(*given, **named)
        except Exception as error:  # a tracker's failure must not stop the run
            self._broken = True
            log.warning("%s failed, and gets nothing more: %s", self.kind, _line(error))


def _name(folder: Path, *, resumed: bool) -> str:
    path = folder / _NAME
    try:
        if resumed:
            return str(read_json(path)["name"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or broken: continue under a new name
    name = f"{folder.resolve().name}-{uuid.uuid4().hex[:6]}"
    write_json(path, {"name": name})
    return name


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
