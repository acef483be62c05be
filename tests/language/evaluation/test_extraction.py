"""What is extracted from completions, against a golden file."""

import json
from pathlib import Path

import pytest

from vpretrain.language.evaluation import extraction
from vpretrain.language.evaluation.benchmarks import BENCHMARKS

GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).with_name("golden") / "extraction.jsonl")
    .read_text("utf-8")
    .splitlines()
]


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
    result = {way: find(marks) for way, find in task.extract.items()}
    right = {
        way: answer is not None and task.judge("1234", answer) for way, answer in result.items()
    }
    assert right == {"strict": marks.startswith("####"), "flexible": True}
