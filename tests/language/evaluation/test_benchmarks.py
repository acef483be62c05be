"""Tasks: how their rows are asked and their answers judged."""

import pytest

from tests.language.evaluation.marks import needs_math_verify
from vpretrain.language.evaluation.benchmarks import BENCHMARKS, own
from vpretrain.language.evaluation.equivalence import (
    same_within,
)
from vpretrain.language.evaluation.wording import wording_of


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
    assert (item.prompt, item.row.text, item.row.origin) == ("What?\n", solution, "mine:1")
    result = [find(completion) for find in (task.extract["strict"], task.extract["flexible"])]
    assert [task.judge(item.expected, answer) for answer in result] == [strict, flexible]


HELD_OUT = {"kind": "held_out", "source": "sums"}


@pytest.mark.parametrize(
    ("rows", "data", "cells", "prompt"),
    [
        ({"prompt": "problem", "solution": "work"}, {"separator": " = "}, ["q"], "What? = "),
        (
            {"prompt": "problem", "solution": "work"},
            {"instruction": "Solve.\n{prompt}\nWork:", "separator": " {"},
            ["q"],
            "Solve.\nWhat?\nWork: {",
        ),
        (
            {"template": "{topic}: {problem}\nA:", "solution": "work"},
            {"instruction": "Solve.\n{prompt}"},
            ["topic", "problem"],
            "Solve.\nWhat?: What?\nA:\n",
        ),
        ({"format": "qa@1"}, {}, ["question", "answer"], "Question: What?\nAnswer: "),
        (
            {"format": "qa@1", "columns": {"question": "asked"}},
            {"instruction": "Solve.\n{prompt}"},
            ["asked", "answer"],
            "Question: What?\nAnswer: ",
        ),
        ({"kind": "word_problems", "rows": 8}, {"separator": ""}, ["q"], "What?"),
        (HELD_OUT, {}, ["question", "answer"], "Question: What?\nAnswer: "),
    ],
)
def test_rows_of_ones_own_are_asked_as_the_run_asks_its_own(rows, data, cells, prompt):
    stream = [{"name": "sums", "rows": {"kind": "jsonl", "path": "s.jsonl", "format": "qa@1"}}]
    data = {"separator": "\n", "stream": stream, "evaluation": {"dev": rows, "test": {}}, **data}
    recipe = {"modality": "language", "data": data, "evaluate": {"split": "dev"}}
    task = own("mine", prompt="q", solution="a", answer=None, wording=wording_of(recipe))
    row = {**dict.fromkeys(cells, "What?"), "a": "4"}
    item = task.item(row, "mine:1")
    assert item.prompt == item.row.prompt == prompt
    assert set(cells) | {"a"} >= set(task.columns) >= set(cells), "what a file is refused for"


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
