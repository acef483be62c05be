"""When two answers are the same."""

import threading
import time
from fractions import Fraction

import pytest

from tests.language.evaluation.marks import needs_math_verify
from vpretrain.language.evaluation.equivalence import (
    Judge,
    quantity,
    same_mathematics,
    same_quantity,
    same_text,
    same_within,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        ("$18", 18),
        ("−3", -3),
        ("50%", 50),
        ("1/2", Fraction(1, 2)),
        ("3.50", Fraction(7, 2)),
        ("1/0", None),
        ("1,23", None),
        ("3x", None),
        ("", None),
        ("0" * 5_000, None),
        ("1/" + "9" * 5_000, None),
        ("0." + "3" * 5_000, None),
    ],
)
def test_quantities(text, value):
    assert quantity(text) == value


def test_equal_quantities_and_texts():
    assert same_quantity("1,234", "$1234.00") and not same_quantity("1234", "1235")
    assert not same_quantity("18", "0" * 5_000), "more digits than Python reads as a number"
    assert not same_within("18", "0" * 5_000)
    assert same_text("(C)", "c") and same_text("New  York.", "new york") and not same_text("C", "D")


@needs_math_verify
@pytest.mark.parametrize(
    ("expected", "result", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("x^2+2x+1", "(x+1)^2", True),
        (r"50\%", "0.5", True),
        (r"90^\circ", "90", True),
        ("1,234", "1234", True),
        (r"\{1,2\}", "{2,1}", True),
        ("3", "3x", False),
        ("1", "2", False),
        ("(1,2)", "(2,1)", False),
        ("1", r"\frac{", False),
        ("18", "0" * 5_000, False),
    ],
)
def test_mathematics(expected, result, same):
    assert same_mathematics(expected, result) is same


@needs_math_verify
def test_a_question_that_takes_for_ever_is_no_and_the_next_one_is_answered():
    judge = Judge(seconds=1.0)
    try:
        assert judge.equivalent("x + 1", "1 + x")
        began = time.monotonic()
        assert not judge.equivalent("9", "9^{9^{9^9}}"), (
            "signals do not interrupt this; killing does"
        )
        assert time.monotonic() - began < 5
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(judge.equivalent(r"\sqrt{8}", r"2\sqrt{2}"))
        )
        thread.start()
        thread.join()
        assert answers == [True], "asked outside of the main thread, after the process was killed"
    finally:
        judge.close()
