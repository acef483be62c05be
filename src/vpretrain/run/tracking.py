"""Records of a run to wandb or trackio, beside ``metrics.jsonl`` and TensorBoard."""

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
"""By what a tracker finds a run again that is gone on with."""
_NAME = "tracked.json"


def missing(track: Track | None) -> Iterator[Problem]:
    """What has to be installed first."""
    # wandb writes to a folder of its own name, which Python takes for a package without a file.
    if track is not None and getattr(find_spec(track.kind), "origin", None) is None:
        message = "this package is not installed; install it, or leave the key out"
        yield Problem("track.kind", track.kind, f"pip install {track.kind}", message)


class Tracker:
    """The two have the same three functions: init, log, finish.

    What goes wrong after the beginning is logged once, and the run goes on without it.

    Args:
        track: which, and the project.
        folder: of the run; keeps the run's name there, so that a resumed run goes on with it.
        recipe: its values are shown beside the run.
        resumed: whether records came before.

    Raises:
        UserError: it does not begin: no package, no account.
    """

    def __init__(self, track: Track, folder: Path, recipe: Recipe, *, resumed: bool) -> None:
        name = _name(folder, resumed=resumed)
        self.kind, self._broken = track.kind, False
        try:
            with redirect_stdout(sys.stderr):  # standard output is the caller's: --json
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
        """The figures of a step, but its number: both keep the name for themselves."""
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
        except Exception as error:  # what is shown is worth less than the run
            self._broken = True
            log.warning("%s failed, and gets nothing more: %s", self.kind, _line(error))


def _name(folder: Path, *, resumed: bool) -> str:
    path = folder / _NAME
    try:
        if resumed:
            return str(read_json(path)["name"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # gone or broken: what comes is shown as a run of its own
    name = f"{folder.resolve().name}-{uuid.uuid4().hex[:6]}"
    write_json(path, {"name": name})
    return name


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
