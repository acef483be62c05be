"""``explain`` on tiny runs: the figures against their definitions, nothing moves, data stays text,
bad input is said once.
"""

import hashlib
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.run.test_train import tiny_recipe
from vpretrain.config import recipe as recipes
from vpretrain.language import Language
from vpretrain.language.explain import figures, page
from vpretrain.run.finished_run import restore_designer
from vpretrain.run.launch import train_one
from vpretrain.run.modalities import SCHEMAS
from vpretrain.studies.explain import explain
from vpretrain.system.errors import UserError

SOURCE = "<script>owned()</script>"


def make(folder, arm, *overrides):
    recipe = tiny_recipe(f"arm={arm}", "threads=1", f"data.stream.1.name={SOURCE!r}", *overrides)
    train_one(recipe, folder, lambda record, fraction: None)
    return folder


@pytest.fixture(scope="module")
def field_run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "field", "field")


def fingerprint(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "explain.html")
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_page_and_figures_of_a_learned_designer(field_run):
    before = fingerprint(field_run)
    result = explain(field_run, documents=10)
    assert fingerprint(field_run) == before
    assert result["documents"] == 10 and set(result["sources"]) == {"problems", SOURCE}
    value = result["value"]
    assert result["regret"] == pytest.approx(value["bound"] - value["designer"])
    assert value["bound"] >= max(value["onehot"], value["designer"], value["closed_form"])
    assert -1 <= result["correlation"] <= 1 and -1 <= result["agreement"] <= 1
    html = (field_run / "explain.html").read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "http://" not in html and "https://" not in html and "src=" not in html
    json.dumps(result)
    assert explain(field_run, documents=10) == result
    assert (field_run / "explain.html").read_text(encoding="utf-8") == html


def test_documents_that_hold_a_tag_show_it_as_text(field_run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "spelled", lambda tokenizer, ids: ["<script>x()</script>"] * len(ids))
    explain(field_run, documents=3, out=tmp_path / "new" / "page.html")
    html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script&gt;x()" in html


@pytest.mark.parametrize(
    "arm", ["onehot", "closed_form", "token_weights", "feedback_sft", "random_feedback"]
)
def test_every_kind_of_arm(tmp_path, arm):
    result = explain(make(tmp_path / arm, arm, "budget.steps=1"), documents=4)
    value = result["value"]
    assert all(math.isfinite(v) for v in value.values())
    assert set(result["sources"]) <= {
        "problems",
        SOURCE,
    }  # the stream, even where the arm did not train on it
    if arm in ("onehot", "feedback_sft"):
        assert value["designer"] == pytest.approx(value["onehot"]) and result["correlation"] is None
    if arm == "closed_form":
        assert value["designer"] > value["onehot"]
    said = "is a control" in (tmp_path / arm / "explain.html").read_text(encoding="utf-8")
    assert said == (arm == "random_feedback")


def broken(field_run, folder, name):
    shutil.copytree(field_run, folder)
    (folder / name).unlink()
    return folder


def test_bad_input_is_one_clear_error(field_run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    vision = shutil.copytree(field_run, tmp_path / "vision")
    (vision / "recipe.yaml").write_text(recipes.dump(recipes.load("demo-vision", schemas=SCHEMAS)))
    damaged = broken(field_run, tmp_path / "damaged", "result.json")
    (damaged / "designer" / "state.pt").write_bytes(b"nothing")
    weightless = broken(field_run, tmp_path / "weightless", "model/model.safetensors")
    for folder, said in (
        (tmp_path / "nowhere", "no such folder"),
        (empty, "no recipe.yaml"),
        (vision, "`explain` reads runs on text"),
        (broken(field_run, tmp_path / "unfinished", "model/config.json"), "did not finish"),
        (damaged, "designer's state"),
        (weightless, "model"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            explain(folder, documents=2)
        assert len(caught.value.problems) == 1
    with pytest.raises(UserError, match="name a file"):
        explain(field_run, documents=2, out=tmp_path)


def test_a_state_of_another_designer_is_refused(field_run):
    recipe = tiny_recipe("arm=field", "designer.hidden=32")
    parts = Language().build(recipe, Language().load(recipe))
    with pytest.raises(UserError, match="does not go with the recipe"):
        restore_designer(parts, field_run)


def test_a_run_with_adapters_is_explained_by_those_that_it_trained(tmp_path, monkeypatch):
    folder = make(tmp_path / "run", "closed_form", "learner.lora={r: 2}")
    seen = []
    monkeypatch.setattr(figures, "restore_designer", lambda parts, folder: seen.append(parts))
    assert math.isfinite(explain(folder, documents=2)["value"]["bound"])
    (parts,) = seen
    saved = load_file(folder / "model" / "adapter" / "adapter_model.safetensors")
    for name, parameter in parts.learner.aligned.items():
        assert torch.equal(parameter, saved[f"base_model.model.{name.replace('.default', '')}"])
        assert "lora_B" not in name or parameter.abs().sum() > 0


def test_preferences_of_a_run_without_adapters_have_no_reference_left(field_run, tmp_path):
    folder = shutil.copytree(field_run, tmp_path / "run")
    recipe = recipes.load(
        folder / "recipe.yaml",
        ["data.feedback.rows=null", "data.feedback.tasks={x: " + PREFERENCES + "}"],
        schemas=SCHEMAS,
    )
    (folder / "recipe.yaml").write_text(recipes.dump(recipe))
    with pytest.raises(UserError, match="untouched checkpoint"):
        explain(folder, documents=2)


PREFERENCES = (
    "{kind: preference, rejected: b, rows: {kind: jsonl, path: p.jsonl, prompt: p, solution: a}}"
)
