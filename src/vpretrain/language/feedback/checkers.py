"""Checkers: what a completion earns, given the row with its reference solution.

A checker is any ``(row, completion) -> float``; :data:`CHECKERS` holds those that a recipe can
name. In Python, put a factory of your own under a new name before the recipe is loaded into a run::

    CHECKERS["shorter"] = lambda pattern: lambda row, completion: -len(completion) / 100
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from vpretrain.language.data.rows import Row
from vpretrain.language.evaluation.extraction import last_match
from vpretrain.system.errors import NonFinite, user_error
from vpretrain.system.signals import TimeUp, time_limit

Checker = Callable[[Row, str], float]

CHECKER_SECONDS = 10.0
"""What one call of a checker may take, where a recipe says nothing else."""


class CheckerFault(NonFinite):
    """A checker came to no reward; the batch can be left out."""


NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
"""A number as people write it: thousands separators, a sign, decimals. No exponents, no fractions.
"""


@dataclass(frozen=True)
class ExactAnswer:
    """1 if the answer is the reference's, up to white space and letters' case; 0 otherwise.

    Args:
        pattern: expression with one group; its last match in a text is the text's answer.
    """

    pattern: str

    def __call__(self, row: Row, completion: str) -> float:
        """The reward, 0 or 1."""
        expected, answer = (last_match(text, self.pattern) for text in (row.text, completion))
        return float(
            None not in (expected, answer) and _folded(str(expected)) == _folded(str(answer))
        )


@dataclass(frozen=True)
class EqualNumber:
    """1 if the answer is the same number as the reference's (``1,234``, ``1234.0`` and ``$1234``
    are one), 0 otherwise.

    Args:
        pattern: expression with one group; the last number in its last match counts.
    """

    pattern: str = NUMBER

    def __call__(self, row: Row, completion: str) -> float:
        """The reward, 0 or 1."""
        expected, answer = (self.number(text) for text in (row.text, completion))
        return float(
            expected is not None
            and answer is not None
            and abs(expected - answer) <= 1e-6 * abs(expected)
        )

    def number(self, text: str) -> float | None:
        """The number that a text answers with; None without one."""
        answer = last_match(text, self.pattern)
        digits = None if answer is None else last_match(answer, NUMBER)
        return None if digits is None else float(digits.replace(",", ""))


@dataclass(frozen=True)
class Contains:
    """1 if the completion contains the reference's answer, up to white space and letters' case; 0
    otherwise.

    Args:
        pattern: expression with one group that finds the answer in the reference (its last match).
    """

    pattern: str = r"(?s)^(.*)$"

    def __call__(self, row: Row, completion: str) -> float:
        """The reward, 0 or 1."""
        expected = last_match(row.text, self.pattern)
        return float(bool(expected) and _folded(str(expected)) in _folded(completion))


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


DEFAULT_PATTERNS = {"exact": r"####\s*(.+)", "number": NUMBER, "contains": r"(?s)^(.*)$"}
"""What finds the answer where the recipe gives no ``answer``."""

CHECKERS: dict[str, Callable[[str], Checker]] = {
    "exact": ExactAnswer,
    "number": EqualNumber,
    "contains": Contains,
}
"""By the name that a recipe gives, from the pattern to the checker."""


def checker_named(name: str, pattern: str | None) -> Checker:
    """The checker of :data:`CHECKERS` by its name; a ``pattern`` of None takes the
    checker's own.
    """
    return CHECKERS[name](pattern or DEFAULT_PATTERNS.get(name, ""))


def reward_of(
    checker: Checker,
    row: Row,
    completion: str,
    *,
    seconds: float = CHECKER_SECONDS,
    where: str,
) -> float:
    """What a completion earns.

    Args:
        checker: what says so; anything can become of a call of it.
        row: that it was asked about.
        completion: the learner's own.
        seconds: for the call; see :func:`vpretrain.system.signals.time_limit`.
        where: dotted recipe key, for messages.

    Raises:
        CheckerFault: it raised, left (``sys.exit``), or took longer.
        UserError: the reward is not finite.
    """
    try:
        with time_limit(seconds):
            reward = float(checker(row, completion))
    except KeyboardInterrupt:
        raise
    except TimeUp as error:
        message = f"the checker took {error} on {row.origin}; make it quicker or allow it more time"
        raise CheckerFault(f"{where}: {message}") from None
    except BaseException as error:  # whatever somebody else's code raises, SystemExit too
        raise CheckerFault(
            f"{where}: the checker raised {error!r} on {row.origin}; correct it"
        ) from error
    if not isfinite(reward):
        message = f"the checker gave {row.origin} no finite reward; correct the checker"
        raise user_error(where, message, value=reward, accepted="a finite number")
    return reward
