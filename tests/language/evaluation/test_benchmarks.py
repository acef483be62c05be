"""Tasks: how their rows are asked and their answers judged."""

import pytest

from tests.language.evaluation.marks import needs_math_verify
from vpretrain.language.evaluation.benchmarks import BENCHMARKS, own
from vpretrain.language.evaluation.equivalence import (
    same_within,
)


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
