"""Benchmarks scored during a run."""

import json

import pytest

from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.system.errors import UserError


def problems(root):
    (root / "gsm8k").mkdir()
    rows = [
        {"question": f"3 + {n} = ?", "answer": f"It is {3 + n}.\n#### {3 + n}"} for n in range(5)
    ]
    (root / "gsm8k/test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [
        f"data.root={root}",
        "evaluate.tasks=[gsm8k]",
        "evaluate.task_rows=4",
        "evaluate.task_tokens=6",
    ]


def test_they_stand_beside_the_split(tmp_path):
    recipe = tiny_recipe(*problems(tmp_path))
    scores = Language().build(recipe, Language().load(recipe)).evaluate()
    found = {name: score for name, score in scores.items() if name.startswith("gsm8k/")}
    assert found and all(score.n == 4 for name, score in found.items() if "pass" in name)
    assert all(len(score.items) in (0, score.n) for score in found.values())


def test_a_missing_file_is_named_by_the_recipes_key(tmp_path):
    with pytest.raises(UserError, match=r"data\.root"):
        Language().load(tiny_recipe(f"data.root={tmp_path}", "evaluate.tasks=[gsm8k]"))
