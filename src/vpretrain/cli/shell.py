"""Shared by all commands: common arguments, and output for people and for programs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vpretrain.config.recipe import Recipe, load
from vpretrain.config.section import look_up
from vpretrain.system.errors import user_error
from vpretrain.system.lock import PID_FILE
from vpretrain.system.timing import Pace

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML path or a packaged name (see `recipes`).")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="Override dotted recipe keys.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Go on although recipe or data were changed."),
]


def _out(text: str | Path) -> Path:
    if not str(text).strip():
        message = "this is empty, as of a variable that is not set; name a place, or leave it out"
        raise user_error("--out", message, value=repr(text))
    return Path(text)


def out_option(meaning: str, metavar: str = "PATH") -> Any:
    """Returns the flag ``--out``."""
    return typer.Option("--out", parser=_out, metavar=metavar, help=meaning)


Out = Annotated[Path | None, out_option("Folder for the results; default: one in runs/.")]


def resolved_recipe(recipe: str, overrides: list[str] | None) -> Recipe:
    """Loads a recipe; for a run folder, the run's recipe with its final model as the learner."""
    from vpretrain.run.finished_run import holds_model
    from vpretrain.run.modalities import SCHEMAS

    folder = Path(recipe)
    if not (folder / "recipe.yaml").is_file():
        return load(recipe, overrides or [], schemas=SCHEMAS)
    learner = load(folder / "recipe.yaml", schemas=SCHEMAS).learner
    if not hasattr(learner, "model"):
        message = "learners of this modality are not taken from a folder: name its recipe"
        raise user_error(recipe, message, accepted=str(folder / "recipe.yaml"))
    own = [f"learner.{key}=null" for key in ("config", "prepare") if hasattr(learner, key)]
    if not holds_model(folder):
        raise user_error(
            recipe,
            "this run folder holds no model; the run did not finish",
            value=str(folder / "model"),
            accepted="a recipe, or a folder that `vpretrain train` wrote and finished",
        )
    return load(
        folder / "recipe.yaml",
        # As JSON: YAML would end the name of a folder at " #".
        [f"learner.model={json.dumps(str(folder / 'model'))}", *own, *(overrides or [])],
        schemas=SCHEMAS,
    )


def names(text: str) -> list[str]:
    """Splits comma-separated names."""
    return [name for part in text.split(",") if (name := part.strip())]


def stem(recipe: str) -> str:
    """Returns the name that a recipe's results are filed under."""
    return Path(recipe).stem


def console_for_people(as_json: bool) -> Console:
    """Returns the console for people: standard error if standard output is reserved for JSON."""
    console = Console(stderr=as_json)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 140  # a pipe has no width; tables should not be squeezed into 80
    return console


def say(console: Console, text: str) -> None:
    """Prints a line verbatim: no markup, no colours, and only the terminal's own line breaks."""
    console.print(escape(text), highlight=False, soft_wrap=True)


def say_changes(console: Console, result: dict[str, Any]) -> None:
    """Prints the accepted differences from what the results began with."""
    for change in result.get("changes", []):
        say(console, f"changed: {change['what']}, from {change['before']} to {change['now']}")


def progress_bar(console: Console) -> Progress:
    """Returns a progress bar that is shown only on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class ShownProgress:
    """Shows finished parts, the latest status and the time left.

    On a terminal a bar, elsewhere a line every 30 seconds; also a line for each finished part, and
    for what precedes the first.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._console, self._bar = console, progress_bar(console)
        self._task = self._bar.add_task("starting", total=None)
        self._now, self._pace, self._started = now, Pace(30.0, now), now()
        self._before: int | None = None  # number of parts done at the start
        self._done, self._said = -1, ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, what: str, underway: float) -> None:
        if self._before is None:
            self._before = done
        reached = done + underway
        if reached == self._before:  # reading data and step 0 do not count towards a run's duration
            self._started = self._now()
        self._bar.update(self._task, completed=reached, total=total, description=what)
        ended, self._done = done > self._done, done
        ended |= reached == self._before and what != self._said  # preparation may take long
        due, self._said = self._pace.due(), what
        if ended or (due and not self._console.is_terminal):
            taken = self._now() - self._started
            left = _time_left(taken, reached - self._before, total - reached)
            say(self._console, f"{done} of {total}: {what}{left}")


class ShownSteps:
    """Shows the steps of one run: a bar on a terminal, else a line per tenth of the budget.

    ``unit`` is what the stream is counted in: ``tokens``, ``images``.
    """

    def __init__(self, console: Console, unit: str) -> None:
        self._console, self._bar, self._unit = console, progress_bar(console), unit
        self._task = self._bar.add_task("reading data", total=1.0)
        self._next = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, record: dict[str, Any], fraction: float) -> None:
        if "skipped" in record:
            skipped = f"after step {record['step']} a batch was left out: {record['skipped']}"
            say(self._console, skipped)
            return
        rate = f"{record['tokens_per_second']:.0f} {self._unit}/s"
        line = f"step {record['step']}  loss {record['loss']:.3f}  {rate}"
        self._bar.update(self._task, completed=fraction, description=line)
        if not self._console.is_terminal and fraction >= self._next:
            say(self._console, f"{fraction:4.0%}  {line}")
            self._next = fraction + 0.1


def _time_left(seconds: float, done: float, rest: float) -> str:
    """Estimates the time left at the speed so far; empty before a tenth of a part is done, since
    what precedes a first step takes as long as many steps."""
    if done < 0.1 or rest <= 0:
        return ""
    left = seconds * rest / done
    return f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"


_MARKS = {
    "a run": "metrics.jsonl",
    "a comparison": "runs/step0.json",
    "a search": "sweep.db",
}
"""File that exists from the beginning, by what a folder holds."""
_OVERWRITTEN = ("recipe.yaml", "tensorboard", "model")
"""What a run writes that a folder may hold for other reasons."""


def results_folder(path: Path, holds: str | None = None) -> Path:
    """Returns the folder for results; rejects unusable ones before any work.

    Args:
        path: new, or an existing folder.
        holds: one of :data:`_MARKS`, what will be written; a folder that holds something else is
            rejected.

    Raises:
        UserError: the path cannot be a folder, is not writable, or holds other results.
    """
    try:
        look_up(path)
    except ValueError as error:
        message = f"{error}; name another folder"
        raise user_error("--out", message, value=str(path)) from None
    there = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    if not there.is_dir():
        raise user_error(
            "--out",
            f"{there} is a file; name a folder",
            value=str(path),
            accepted="a new or existing folder",
        )
    if not os.access(there, os.W_OK):
        raise user_error(
            "--out", f"no permission to write in {there}; name another folder", value=str(path)
        )
    foreign = [name for name in _OVERWRITTEN if (path / name).exists()]
    begun = any((path / mark).exists() for mark in (*_MARKS.values(), PID_FILE))
    if holds == "a run" and foreign and not begun:
        message = f"no run wrote {' and '.join(foreign)} here, which this one would overwrite"
        accepted = "a new folder"
        raise user_error("--out", message, value=str(path), accepted=accepted)
    for other, mark in _MARKS.items():
        if holds not in (None, other) and (path / mark).exists():
            message = f"this folder holds {other}, and {holds} would be mixed with it; name another"
            raise user_error("--out", message, value=str(path), accepted="a new folder")
    return path


def emit(value: Any, as_json: bool) -> None:
    """Prints the result as JSON to standard output, if asked for."""
    if as_json:
        print(json.dumps(strict(value), indent=1, default=str))


def strict(value: Any) -> Any:
    """Replaces non-finite numbers by None, because JSON cannot represent them."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
