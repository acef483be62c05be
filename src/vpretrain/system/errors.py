"""Errors for people: where it is wrong, what was found, what is accepted, what to do about it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user gave.

    Args:
        where: dotted recipe key, ``file:line``, or command-line flag.
        value: what was found there (its ``repr`` is shown; empty when nothing was).
        accepted: what would have been accepted, in words.
        message: one sentence: what is wrong and the edit or command that fixes it.

    Each is cut in its middle where it is longer than anybody reads: a key may have 10 MB.
    """

    where: str
    value: str
    accepted: str
    message: str

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            most = {"where": 400, "value": 1200}.get(name, 4000)
            if len(text) > most:
                cut = f"{text[: most // 2]} ... {text[-most // 4 :]}"
                object.__setattr__(self, name, cut)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.message}"]
        if self.value:
            lines.append(f"    got       {self.value}")
        if self.accepted:
            lines.append(f"    accepted  {self.accepted}")
        # Names of files and cells may hold what no terminal can be sent.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


class UserError(Exception):
    """The user's input is wrong (exit code 2). Carries every problem that was found, not the first
    alone, and each once."""

    exit_code = 2

    def __init__(self, *problems: Problem) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def user_error(where: str, message: str, *, value: object = "", accepted: str = "") -> UserError:
    """A :class:`UserError` with a single problem; ``value`` is shown by its ``repr`` (a string as
    it is)."""
    shown = value if isinstance(value, str) else repr(value)
    return UserError(Problem(where, shown, accepted, message))


def brief(error: Exception) -> str:
    """What an exception says, on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def shortened(text: str) -> str:
    """At most 80 characters of it."""
    return text if len(text) <= 80 else text[:77] + "..."


def kind_of(value: object) -> str:
    """What a value of a table is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and math.isnan(value):
        return "no number (NaN)"
    kind = type(value)
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(kind) or ("a number" if kind in (int, float) else f"of type {kind.__name__}")


def abbreviated(names: Iterable[str], most: int = 12) -> str:
    """The first names with commas between them, and how many more there are."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f", ... and {more} more" if more > 0 else "")


@contextmanager
def renamed(places: Mapping[str, str]) -> Iterator[None]:
    """Within it, errors of a shared part speak of the caller's own keys: ``{"--data-root":
    "data.root"}``."""
    try:
        yield
    except UserError as error:
        problems = [
            replace(problem, where=places.get(problem.where, problem.where))
            for problem in error.problems
        ]
        raise UserError(*problems) from None


@contextmanager
def collecting(problems: list[Problem]) -> Iterator[None]:
    """Within it, what is wrong is added to the problems and not raised."""
    try:
        yield
    except UserError as error:
        problems += error.problems


class Fault(Exception):
    """The run cannot go on (non-finite values, a full disk): exit code 4. What was finished is
    kept."""

    exit_code = 4


class NonFinite(Fault):
    """A loss, a gradient or a value is not finite, and nothing was changed by it: the batch can be
    left out."""


class Stopped(Exception):
    """A signal or a limit of time ended the run early; the same command goes on from here: exit
    code 3.

    Args:
        by: the signal's name, or what it was.
        after: what was done by then (``step 12``).
    """

    exit_code = 3

    def __init__(self, by: str, after: str = "") -> None:
        super().__init__(by, after)
        self.by, self.after = by, after

    def __str__(self) -> str:
        when = f" after {self.after}" if self.after else ""
        return f"{self.by}{when}; the same command goes on from there"
