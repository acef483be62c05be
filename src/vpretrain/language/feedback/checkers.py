"""Checkers: the reward of a completion, given the row with its reference solution.

A checker is any ``(row, completion) -> float``; :data:`CHECKERS` holds those that a recipe can
name. In Python, register a factory of your own under a new name before the run is built::

    CHECKERS["shorter"] = lambda pattern: lambda row, completion: -len(completion) / 100
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

from vpretrain.language.data.rows import Row
from vpretrain.language.evaluation.equivalence import quantity
from vpretrain.language.evaluation.extraction import last_match, last_number
from vpretrain.system.errors import NonFinite, user_error
from vpretrain.system.signals import TimeUp, time_limit

Checker = Callable[[Row, str], float]

CHECKER_SECONDS = 10.0
"""Default time limit of one call of a checker."""


class CheckerFault(NonFinite):
    """A checker raised an error or timed out; the batch can be skipped."""


@dataclass(frozen=True)
class ExactAnswer:
    """Reward 1 if the answer equals the reference's, ignoring white space and case, else 0.

    Args:
        pattern: regular expression with one group, whose last match in a text is the answer.
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
    r"""Reward 1 if the answer is the same number as the reference's (``1,234``, ``1234.0`` and
    ``$1234`` are equal, and so are ``1/2``, ``\frac{1}{2}`` and ``0.5``), else 0.

    Args:
        pattern: regular expression with one group; the last number in its last match is the answer.
    """

    pattern: str = r"(?s)(.*\d.*)"

    def __call__(self, row: Row, completion: str) -> float:
        """The reward, 0 or 1."""
        expected, answer = (self.number(text) for text in (row.text, completion))
        return float(
            expected is not None
            and answer is not None
            and abs(expected - answer) <= Fraction(1, 10**6) * abs(expected)
        )

    def number(self, text: str) -> Fraction | None:
        """The number that a text gives as its answer, or None."""
        answer = last_match(text, self.pattern)
        digits = None if answer is None else last_number(answer)
        return None if digits is None else quantity(digits)


@dataclass(frozen=True)
class Contains:
    """Reward 1 if the completion contains the reference's answer, ignoring white space and case,
    else 0.

    Args:
        pattern: regular expression with one group, whose last match in the reference is the answer.
    """

    pattern: str = r"(?s)^(.*)$"

    def __call__(self, row: Row, completion: str) -> float:
        """The reward, 0 or 1."""
        expected = last_match(row.text, self.pattern)
        return float(bool(expected) and _folded(str(expected)) in _folded(completion))


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


DEFAULT_PATTERNS = {
    "exact": r"####\s*(.+)",
    "number": EqualNumber.pattern,
    "contains": Contains.pattern,
}
"""Default patterns that find the answer, by checker."""

CHECKERS: dict[str, Callable[[str], Checker]] = {
    "exact": ExactAnswer,
    "number": EqualNumber,
    "contains": Contains,
}
"""Factories of checkers from the answer pattern, by their name in a recipe."""


def checker_named(name: str, pattern: str | None) -> Checker:
    """The checker of this name in :data:`CHECKERS`; a ``pattern`` of None is the checker's own."""
    return CHECKERS[name](pattern or DEFAULT_PATTERNS.get(name, ""))


def reward_of(
    checker: Checker,
    row: Row,
    completion: str,
    *,
    seconds: float = CHECKER_SECONDS,
    where: str,
) -> float:
    """The reward of a completion.

    Args:
        checker: the checker, which may raise anything.
        row: the row with the prompt and the reference solution.
        completion: the learner's answer.
        seconds: time limit of the call; see :func:`vpretrain.system.signals.time_limit`.
        where: dotted recipe key, for messages.

    Raises:
        CheckerFault: the checker raised an error, called ``sys.exit``, or took too long.
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
    except BaseException as error:  # a user's checker may raise anything, SystemExit too
        raise CheckerFault(
            f"{where}: the checker raised {error!r} on {row.origin}; correct it"
        ) from error
    if not isfinite(reward):
        message = f"the checker gave {row.origin} no finite reward; correct the checker"
        raise user_error(where, message, value=reward, accepted="a finite number")
    return reward
