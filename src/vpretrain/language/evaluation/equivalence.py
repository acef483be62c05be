"""Equality of two answers: as text, as quantities, or as mathematics (math-verify, in a process
that can be killed).

math-verify limits its time by an alarm signal, which only works in the main thread and does not
interrupt arithmetic on huge integers (``9^{9^{9^9}}``). Here it runs in a separate process with
limited memory, which is killed if it takes too long.
"""

from __future__ import annotations

import atexit
import json
import re
import select
import subprocess
import sys
import threading
from fractions import Fraction
from functools import cache
from pathlib import Path

from vpretrain.language.evaluation.extraction import NUMBER, trimmed

_NUMBER = re.compile(NUMBER)
_PLAIN = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?")


def same_text(expected: str, candidate: str) -> bool:
    """Whether answers are equal, ignoring case, white space and what :func:`trimmed` removes."""
    return _folded(expected) == _folded(candidate)


def same_quantity(expected: str, candidate: str) -> bool:
    """Whether two answers are equal as text or the same number: ``1,234`` is ``1234.0``, ``$18`` is
    ``18``, ``50%`` is ``50``, ``1/2`` is ``0.5``."""
    a, b = quantity(expected), quantity(candidate)
    return a == b if a is not None and b is not None else same_text(expected, candidate)


def same_mathematics(expected: str, candidate: str) -> bool:
    r"""Whether two answers are equal as text or plain number, or equivalent by math-verify
    (``\frac{1}{2}`` is ``0.5``); False if that takes too long."""
    if same_text(expected, candidate):
        return True
    if all(_PLAIN.fullmatch(text.strip()) for text in (expected, candidate)) and same_quantity(
        expected, candidate
    ):
        return True
    return _judge().equivalent(expected, candidate)


def same_within(expected: str, candidate: str, tolerance: float = 1e-3) -> bool:
    r"""Whether two answers are equal without LaTeX wrappers and white space, or are decimals or
    fractions (``\frac{1}{2}`` too) that differ by at most ``tolerance * max(1, |expected|)`` (v1
    A.4)."""
    a, b = _unwrapped(expected), _unwrapped(candidate)
    if a == b:
        return True
    one, other = quantity(a), quantity(b)
    if one is None or other is None:
        return False
    return abs(one - other) <= Fraction(tolerance) * max(Fraction(1), abs(one))


def quantity(text: str) -> Fraction | None:
    """The number that a text consists of; None if it is not a number, or one of more digits than
    Python reads (4,300)."""
    if not _NUMBER.fullmatch(text := trimmed(text)):
        return None
    digits = re.sub(r"[\s,$%]", "", text).replace("−", "-")
    numerator, _, denominator = digits.partition("/")
    try:
        return Fraction(numerator) / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):
        return None


class Judge:
    """math-verify in a separate process, started on first use; thread-safe.

    Args:
        seconds: time limit of one comparison, after which the process is killed and the answers
            count as different.
    """

    STARTING_SECONDS = 60.0

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equivalent(self, expected: str, candidate: str) -> bool:
        """Whether both answers are equivalent; False if the comparison fails or takes too long."""
        with self._lock:
            process = self._running()
            try:
                assert process.stdin is not None
                process.stdin.write(json.dumps([expected, candidate]) + "\n")
                process.stdin.flush()
                answer = self._line(process, self.seconds)
            except BrokenPipeError:
                answer = None
            if answer is None:
                self._stop()
            return answer == "equal"

    def close(self) -> None:
        """Ends the process; the next comparison starts a new one."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("math_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            if self._line(self._process, self.STARTING_SECONDS) != "ready":
                self._stop()
                raise RuntimeError(
                    "math-verify did not start; try `python -c 'import math_verify'`"
                )
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[str], seconds: float) -> str | None:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline().strip() or None if ready else None

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@cache
def _judge() -> Judge:
    judge = Judge()
    atexit.register(judge.close)
    return judge


_WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|boxed|left|right)\b|\\[,;!: ]")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")


def _unwrapped(text: str) -> str:
    """An answer without LaTeX wrappers and white space, with fractions written as ``a/b``."""
    text = _FRACTION.sub(r"\1/\2", _WRAPPERS.sub("", trimmed(text)))
    return "".join(trimmed(text.replace("{", "").replace("}", "")).split())


def _folded(text: str) -> str:
    return "".join(trimmed(text).split()).casefold()
