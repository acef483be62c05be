"""Files of recipes: what extends what, broken ones, packaged ones, and lists of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.config.toy import GOOD, Source, read, refused
from vpretrain.config import recipe as recipes
from vpretrain.config.recipe import Budget, Value, listing, load, packaged
from vpretrain.run.modalities import SCHEMAS as MODALITIES
from vpretrain.system.errors import UserError


def test_extends_merges_deeply_and_replaces_lists(write: Callable[..., Path]) -> None:
    write(GOOD, "base.yaml")
    write(
        "extends: ../base.yaml\nvalue: {settle_steps: 3}\ndata: {stream: [{path: c}]}\n",
        "more/middle.yaml",
    )
    path = write("extends: more/middle.yaml\nvalue: {settle_steps: 4}\nbudget: {tokens: 5}\n")
    recipe = read(path)
    assert recipe.value == Value(meta_period=2, settle_steps=4)
    assert recipe.budget == Budget(steps=10, tokens=5)
    assert recipe.data.stream == (Source(path=Path("c")),)
    path = write("extends: base.yaml\nvalue: {smoothness: -1}\n")
    assert "toy.yaml:2 value.smoothness" in refused(path)
    write(GOOD.replace("steps: 10", "steps: ten"), "base.yaml")
    assert "base.yaml:5 budget.steps" in refused(write("extends: base.yaml\n")), (
        "the file that said it"
    )


def test_of_rows_of_another_kind_nothing_stays(write: Callable[..., Path]) -> None:
    def rows(given: str) -> Any:
        text = f"extends: demo-language\ndata:\n  feedback: {{rows: {given}}}\n"
        recipe: Any = load(write(text) if given else "demo-language", schemas=MODALITIES)
        return recipe.data.feedback.rows

    files = rows("{kind: jsonl, path: a.jsonl, text: text}")
    assert (files.kind, files.path, files.rows) == ("jsonl", Path("a.jsonl"), None)
    assert rows("{seed: 3}") == rows("").model_copy(update={"seed": 3}), "of the same kind all does"
    with pytest.raises(UserError, match=r"toy\.yaml:3 data\.feedback\.rows\.rows: .*missing"):
        rows("{kind: chatter}")


@pytest.mark.parametrize(
    ("file", "overrides", "tilt"),
    [
        ("designers: {token_weights: {tilt: 0.9}}", [], 0.9),
        ("", ["designers.token_weights.tilt=0.9"], 0.9),
        ("", ["designers.token_weights={tilt: 0.9}"], 0.9),
        ("", ["designers={token_weights: {tilt: 0.9}}"], 0.9),
        ("designers: {ascent: {updates: 2}}", [], 0.5),
    ],
)
def test_the_layer_on_top_has_the_last_word_on_a_designers_keys(
    write: Callable[..., Path], file: str, overrides: list[str], tilt: float
) -> None:
    write("extends: demo-language\ndesigner: {kind: token_weights, tilt: 0.5}\n", "base.yaml")
    path = write(f"extends: base.yaml\n{file}\n")
    recipe: Any = load(path, overrides, schemas=MODALITIES)
    assert recipe.arms.section(recipe, "token_weights").tilt == tilt
    wrong = [override.replace("0.9", "-1") for override in overrides]
    write(f"extends: base.yaml\n{file.replace('0.9', '-1')}\n")
    if tilt == 0.9:
        with pytest.raises(UserError, match=r"(override|toy.yaml:2) designer\.tilt: .*range"):
            load(path, wrong, schemas=MODALITIES)


@pytest.mark.parametrize(
    ("text", "where", "description"),
    [
        ("extends: toy.yaml\n", "toy.yaml:1 extends", "circle"),
        ("extends: other.yaml\n", "other.yaml:2 extends", "circle"),
        ("seed: 1\nextends: [a]\n", "toy.yaml:2 extends", "one other"),
        ("extends: othr.yaml\n", "toy.yaml:1 extends", "did you mean"),
    ],
)
def test_extends_that_leads_nowhere(
    write: Callable[..., Path], text: str, where: str, description: str
) -> None:
    write("seed: 1\nextends: toy.yaml\n", "other.yaml")
    result = refused(write(text))
    assert list(result) == [where]
    assert description in result[where].message


@pytest.mark.parametrize(
    ("text", "where", "description"),
    [
        ("seed: 1\nseed: 2\n", "toy.yaml:2 seed", "line 1"),
        ("value:\n  shrink: true\n  shrink: true\n", "toy.yaml:3 value.shrink", "line 2"),
        ("seed: 1\nbudget: [\n", "toy.yaml:2", "not valid YAML"),
        ("seed: 1\n\tarm: x\n", "toy.yaml:2", "not valid YAML"),
        ("description: a: b\n", "toy.yaml:1", "not valid YAML"),
        ("description: &a [*a]\n", "toy.yaml:1", "contains itself"),
        ("description: !!python/name:os.system\n", "toy.yaml:1", "not valid YAML"),
        ("a: 1\n---\nb: 1\n", "toy.yaml:2", "single document"),
        ("description: !!int abc\n", "toy.yaml:1", "not valid YAML"),
        ("description: !!timestamp x\n", "toy.yaml:1", "not valid YAML"),
        (f"a: {'[' * 5000}\n", "toy.yaml:1", "not valid YAML"),
        (f"seed: {'9' * 5000}\n", "toy.yaml:1", "not valid YAML"),
        ("description: \a\n", "toy.yaml:1", "special characters"),
        ("- a\n", "toy.yaml", "mapping"),
        ("", "toy.yaml", "mapping"),
    ],
)
def test_a_broken_file(write: Callable[..., Path], text: str, where: str, description: str) -> None:
    result = refused(write(text), "foo")
    assert description in result[where].message
    assert "override foo" in result, "the other problems are told as well"


def test_a_file_that_is_not_text_or_not_there(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(GOOD)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(tmp_path / "binary.yaml")["binary.yaml"].message
    (problem,) = refused(tmp_path / "tpy.yaml").values()
    assert f"did you mean {path}?" in problem.message
    assert problem.value == str(tmp_path / "tpy.yaml")
    for name in packaged():
        assert name in problem.accepted
    (folder,) = refused(tmp_path).values()
    assert "this is a folder" in folder.message and str(path) in folder.accepted
    (problem,) = refused("seed=3").values()
    assert "the recipe comes first" in problem.message


def test_a_packaged_recipe_goes_by_its_name(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(GOOD, "demo-toy.yaml")
    monkeypatch.setattr(recipes, "packaged", lambda: {"demo-toy": path})
    assert read("demo-toy") == read(path)
    assert read(write("extends: demo-toy\nseed: 3\n")).seed == 3
    with pytest.raises(UserError, match="did you mean demo-toy"):
        read("demo-tyo")


def test_listing(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "packaged", lambda: {})
    assert listing(None) == listing(tmp_path / "none") == []
    write("value: {}\n", "a/base.yaml")  # there to be extended
    write(GOOD, "a/toy.yaml")
    write("extends: toy.yaml\ndescription: Another.\n", "a/z.yaml")
    write("a: [\n", "a/broken.yaml")
    broken, toy, another = listing(tmp_path)
    assert toy == {
        "name": str(tmp_path / "a" / "toy.yaml"),
        "modality": "toy",
        "description": "A toy.",
    }
    assert another["description"] == "Another."
    assert broken["description"].startswith("cannot be read: ")
    assert read(toy["name"]).description == "A toy."


def test_every_packaged_recipe_is_listed() -> None:
    assert {row["name"] for row in listing(None)} >= set(packaged())
    assert all(row["modality"] and row["description"] for row in listing(None))
