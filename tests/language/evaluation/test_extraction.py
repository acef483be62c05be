"""What is found in completions, against a golden file; and when two answers are the same."""

import importlib.util
import json
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from vpretrain.language.evaluation import extraction
from vpretrain.language.evaluation.benchmarks import BENCHMARKS, own
from vpretrain.language.evaluation.equivalence import (
    Judge,
    quantity,
    same_mathematics,
    same_quantity,
    same_text,
    same_within,
)

GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).with_name("golden") / "extraction.jsonl")
    .read_text("utf-8")
    .splitlines()
]

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="the eval extra is not installed"
)


@pytest.mark.parametrize("row", GOLDEN, ids=[f"{i}-{row['way']}" for i, row in enumerate(GOLDEN)])
def test_golden(row):
    assert getattr(extraction, row["way"])(row["text"]) == row["finds"]


def test_every_way_of_a_benchmark_is_in_the_golden_file():
    ways = {way.__name__ for task in BENCHMARKS.values() for way in task.extract.values()}
    assert ways <= {row["way"] for row in GOLDEN}


@pytest.mark.parametrize(
    "marks", ["#### 1,234", "\\boxed{1,234}", "So the answer is 1,234.", "it is 1234"]
)
def test_strict_and_flexible_differ_where_the_format_is_not_kept(marks):
    task = BENCHMARKS["gsm8k"]
    found = {way: find(marks) for way, find in task.extract.items()}
    right = {
        way: answer is not None and task.judge("1234", answer) for way, answer in found.items()
    }
    assert right == {"strict": marks.startswith("####"), "flexible": True}


@needs_math_verify
@pytest.mark.parametrize(
    ("solution", "completion", "strict", "flexible"),
    [
        ("2 + 2 = 4\n#### 4", "adds up\n#### 4.0", True, True),
        ("2 + 2 = 4\n#### 4", "that makes 4", False, True),
        ("Paris", "Paris.", True, True),
        ("Paris", "The answer is Paris", True, True),
        ("Paris", "Rome", False, False),
        ("12 cm", "it is \\boxed{12\\text{ cm}}", True, True),
    ],
)
def test_rows_of_ones_own(solution, completion, strict, flexible):
    task = own("mine", prompt="q", solution="a", answer=None)
    item = task.item({"q": "What?", "a": solution}, "mine:1")
    assert (item.prompt, item.text) == ("What?\n", solution)
    found = [find(completion) for find in (task.extract["strict"], task.extract["flexible"])]
    assert [task.judge(item.expected, answer) for answer in found] == [strict, flexible]


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
    ],
)
def test_quantities(text, value):
    assert quantity(text) == value


def test_equal_quantities_and_texts():
    assert same_quantity("1,234", "$1234.00") and not same_quantity("1234", "1235")
    assert same_text("(C)", "c") and same_text("New  York.", "new york") and not same_text("C", "D")


@needs_math_verify
@pytest.mark.parametrize(
    ("expected", "found", "same"),
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
    ],
)
def test_mathematics(expected, found, same):
    assert same_mathematics(expected, found) is same


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


def test_omega_is_judged_as_the_paper_has_it():
    """v1 A.4: exact without wrappers and white space; numbers and fractions within 1e-3, relative
    where they are large.
    """
    same = [("12", " 12. "), (r"\text{odd}", "odd"), ("(1, 2)", "(1,2)"), ("0.5", r"\frac{1}{2}")]
    same += [("0.333", "1/3"), ("3141.59", "3142"), (r"\dfrac{7}{8}", "7/8"), ("1,000", "1000")]
    for expected, candidate in same:
        assert same_within(expected, candidate), (expected, candidate)
    for expected, candidate in [("12", "13"), ("0.5", "0.502"), ("odd", "even"), ("x+1", "1+x")]:
        assert not same_within(expected, candidate), (expected, candidate)
    task = BENCHMARKS["omega"]
    row = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "ground_truth": 4}
    item = task.item(row, "x:1")
    assert item.prompt.endswith("What is 2 + 2?\n\nAnswer:") and item.expected == "4"
