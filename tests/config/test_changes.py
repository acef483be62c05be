"""A folder goes on under the recipe that it was begun with, or says which keys are others."""

from collections.abc import Callable
from pathlib import Path

from tests.config.toy import GOOD, read
from tests.reliability.runs import language_recipe
from vpretrain.config.changes import changes
from vpretrain.run.launch import train_one


def test_a_key_that_is_newer_than_the_folder_counts_with_its_default(tmp_path):
    recipe = language_recipe("arm=onehot", "budget.steps=2")
    train_one(recipe, tmp_path, lambda record, fraction: None)
    path = tmp_path / "recipe.yaml"
    lines = [line for line in path.read_text().splitlines() if line.strip() != "on_collapse: log"]
    path.write_text("\n".join(lines))
    assert "on_collapse" not in path.read_text() and changes(tmp_path, recipe, "") == []
    steered = language_recipe("arm=onehot", "budget.steps=2", "value.on_collapse=revert")
    assert [problem.where for problem in changes(tmp_path, steered, "")] == ["value.on_collapse"]


def test_a_folder_of_another_version_is_named_as_such(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = read(write(GOOD))
    (tmp_path / "run").mkdir()
    old = GOOD.replace("description:", "says:")
    (tmp_path / "run" / "recipe.yaml").write_text(old, encoding="utf-8")
    (problem,) = changes(tmp_path / "run", recipe, "name another folder")
    assert "an earlier version" in problem.message and "name another folder" in problem.message
