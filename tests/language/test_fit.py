"""What does not fit the learner's model is refused before the first step."""

import json

import pytest

from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.system.errors import UserError

ROWS = "{kind: jsonl, path: %s, prompt: p, solution: s}"


def test_rows_of_every_set_are_checked_against_the_models_positions(tmp_path):
    """A table of positions ends in an IndexError, in the evaluation or at the first meta step."""
    for name, solution in (("short", "= 1"), ("long", "= 1 " * 70)):
        row = {"p": f"{name} 1 + 0", "s": solution}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    recipe = tiny_recipe(
        f"data.root={tmp_path}",
        "data.evaluation.test=" + ROWS % "short.jsonl",
        "data.evaluation.dev=" + ROWS % "long.jsonl",
        "evaluate.also=[dev]",
    )
    with pytest.raises(UserError, match="not so many positions") as refused:
        Language().build(recipe, Language().load(recipe))
    assert {each.where for each in refused.value.problems} == {"data.evaluation.dev"}
