"""Errors for users: where the problem is, the value found, the values accepted, and the fix."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Problem:
    """One problem with the user's input.

    Args:
        where: dotted recipe key, ``file:line``, or command-line flag.
        value: the value found there, as text; empty if there was none.
        accepted: accepted values, in words.
        message: one sentence: what is wrong and the edit or command that fixes it.

    Overlong texts are cut in the middle: a key may have 10 MB.
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
        # Names of files and cells may hold characters that cannot be encoded for a terminal.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


class UserError(Exception):
    """The user's input is wrong (exit code 2). Carries every problem found, without duplicates."""

    exit_code = 2

    def __init__(self, *problems: Problem) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def user_error(where: str, message: str, *, value: object = "", accepted: str = "") -> UserError:
    """Returns a :class:`UserError` with a single problem.

    ``value`` is shown by its ``repr`` (a string as it is).
    """
    shown = value if isinstance(value, str) else repr(value)
    return UserError(Problem(where, shown, accepted, message))


def brief(error: Exception) -> str:
    """Returns an exception's message on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def shortened(text: str) -> str:
    """Truncates a text to 80 characters."""
    return text if len(text) <= 80 else text[:77] + "..."


def kind_of(value: object) -> str:
    """Describes the type of a table's value in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and math.isnan(value):
        return "no number (NaN)"
    kind = type(value)
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(kind) or ("a number" if kind in (int, float) else f"of type {kind.__name__}")


def abbreviated(names: Iterable[str], most: int = 12) -> str:
    """Joins the first names with commas, and states how many more there are."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f", ... and {more} more" if more > 0 else "")


@contextmanager
def renamed(places: Mapping[str, str]) -> Iterator[None]:
    """Context manager that renames keys in errors of shared code to the caller's.

    For example ``{"--data-root": "data.root"}``.
    """
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
    """Context manager that adds the problems of a UserError to ``problems``, without raising it."""
    try:
        yield
    except UserError as error:
        problems += error.problems


class Fault(Exception):
    """The run cannot continue (non-finite values, a full disk): exit code 4.

    Completed results are kept.
    """

    exit_code = 4


class NonFinite(Fault):
    """A loss, gradient or value is not finite; learner and optimizer are left unchanged, so the
    batch can be skipped.
    """


class Stopped(Exception):
    """A signal or a time limit ended the run early (exit code 3); the same command resumes it.

    Args:
        by: name of the signal or limit.
        after: progress so far (``step 12``).
    """

    exit_code = 3

    def __init__(self, by: str, after: str = "") -> None:
        super().__init__(by, after)
        self.by, self.after = by, after

    def __str__(self) -> str:
        when = f" after {self.after}" if self.after else ""
        return f"{self.by}{when}; the same command goes on from there"
