"""The command line as a user meets it: the JSON that every verb gives on standard output."""

import json

import pytest

from tests.cli.conftest import files_in
from vpretrain.cli import shell
from vpretrain.config.recipe import load
from vpretrain.run.modalities import SCHEMAS

CONFIG = (
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 16, num_attention_heads: 2, "
)


def test_train(call, here):
    called = call("train", "tiny.yaml", "arm=closed_form", "--out", "run", "--json")
    result = called.document
    assert called.code == 0
    assert list(result) == [
        "run_dir",
        "arm",
        "unit",
        "steps",
        "tokens_or_images",
        "seconds",
        "step0",
        "final",
    ]
    assert (result["run_dir"], result["arm"], result["steps"]) == ("run", "closed_form", 2)
    assert set(result["step0"]) == set(result["final"]) == {"test/nll", "test/pass@1"}
    assert "step 0" in called.err and "test/nll" in called.err, "people still get their table"
    run = here / "run"
    assert load(run / "recipe.yaml", schemas=SCHEMAS) == load(
        "tiny.yaml", ["arm=closed_form"], schemas=SCHEMAS
    )
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    environment = json.loads((run / "environment.json").read_text())
    assert {"versions", "command", "git_commit"} <= set(environment)
    assert {name.partition("/")[0] for name in environment["data_hashes"]} == {
        "stream",
        "feedback",
        "evaluation",
    }
    assert all(len(sha) == 64 for sha in environment["data_hashes"].values())
    for name in (
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "designer",
    ):
        assert (run / name).exists()
    again = call(
        "train",
        "tiny.yaml",
        "learner.config=null",
        "learner.model=run/model",
        "--out",
        "next",
        "--json",
    )
    assert again.document["step0"] == pytest.approx(result["final"]), (
        "what was saved is what was measured"
    )
    called = call("train", "tiny.yaml")
    assert called.code == 0 and "step 0" in called.out
    assert (here / "runs" / "tiny-onehot-0" / "model").is_dir()


def test_compare_and_go_on_with_it(call, here):
    command = [
        "compare",
        "tiny.yaml",
        "--arms",
        "onehot, closed_form",
        "--seeds",
        2,
        "--jobs",
        1,
        "--out",
        "c",
        "--json",
    ]
    called = call(*command)
    table = called.document
    assert called.code == 0
    assert table == json.loads((here / "c" / "compare.json").read_text())
    top = ["recipe", "modality", "match", "budget", "metrics", "step0", "runs", "summary", "paired"]
    assert [key for key in table if key in top] == top
    assert (table["modality"], table["match"], table["budget"]) == ("language", "steps", 2)
    metrics = ["test/nll", "test/pass@1"]
    assert [table["metrics"][m]["higher_is_better"] for m in metrics] == [False, True]
    assert all(set(table["step0"][m]) == {"value", "stderr", "n"} for m in metrics)
    assert [(r["arm"], r["seed"]) for r in table["runs"]] == [
        (a, s) for s in (0, 1) for a in ("onehot", "closed_form")
    ]
    for run in table["runs"]:
        assert {"arm", "seed", "steps", "tokens_or_images", "flops", "seconds", "final"} <= set(run)
        assert (run["steps"], set(run["final"])) == (2, set(metrics))
    assert set(table["summary"]) == {"onehot", "closed_form"}
    assert {"mean", "std", "n"} <= set(table["summary"]["onehot"]["test/nll"])
    assert list(table["paired"]) == ["closed_form"], "differences are against the first arm"
    paired = table["paired"]["closed_form"]["test/nll"]
    assert {"difference", "ci95", "p_holm", "verdict"} <= set(paired)
    assert len(paired["ci95"]) == 2 and paired["verdict"] in ("better", "worse", "undecided")

    (here / "c" / "runs" / "closed_form-1.json").unlink()
    kept = (here / "c" / "runs" / "onehot-0.json").stat().st_mtime_ns
    again = call(*command).document
    for run in (*table["runs"], *again["runs"]):
        run.pop("seconds")
    assert again["runs"] == table["runs"]
    assert (here / "c" / "runs" / "onehot-0.json").stat().st_mtime_ns == kept, (
        "finished runs are not run again"
    )

    before = files_in(here / "c")
    for other in (["learner.learning_rate=2e-3"], ["--budget", 3]):
        refused = call(
            "compare",
            "tiny.yaml",
            *other,
            "--seeds",
            1,
            "--arms",
            "onehot",
            "--jobs",
            1,
            "--out",
            "c",
        )
        assert (
            refused.code == 2
            and "was begun with another value" in refused.err
            and "--out" in refused.err
        )
    assert files_in(here / "c") == before


def test_doctor(call):
    called = call("doctor", "tiny.yaml", "--json")
    result = called.document
    assert called.code == 0
    assert list(result) == ["device", "dtype", "attention", "rounding", "estimators"]
    keys = {"name", "supported", "reason", "cosine", "relative_error", "seconds", "peak_bytes"}
    assert all(keys <= set(row) for row in result["estimators"])
    exact = {row["name"]: row["cosine"] for row in result["estimators"]}
    assert set(exact) == {
        "central_difference",
        "one_sided_difference",
        "forward_mode",
        "double_backward",
    }
    assert all(cosine > 0.999 for cosine in exact.values()), (
        "random weights are the same ones in every dtype"
    )


def test_check_recipes_and_prepare(call, here):
    before = files_in(here)
    called = call("check", "tiny.yaml", "--json")
    assert (called.code, called.document) == (0, {"problems": []})
    assert files_in(here) == before
    rows = call("recipes", "--json").document
    assert {"demo-language"} <= {row["name"] for row in rows}
    assert all(list(row) == ["name", "modality", "description"] for row in rows)
    assert next(iter(call("arms", "--json").document)) == "onehot"
    assert "masks" in call("arms", "vision", "--json").document["ascent"]
    assert call("arms", "sound", "--json").code == 2
    made = "learner.prepare={tokenizer: word_problems, phases: [{steps: 1, learning_rate: 1e-3}], "
    made += CONFIG.replace("learner.config=", "config: ").replace("vocab_size: 96, ", "")
    made += "num_hidden_layers: 2, intermediate_size: 16}}"
    called = call("prepare", "tiny.yaml", "learner.config=null", made, "--out", "made", "--json")
    assert (called.code, called.document) == (0, {"model": "made"})
    assert (here / "made" / "model.safetensors").is_file()
    called = call("check", "tiny.yaml", "learner.config=null", made, "--json")
    assert (called.code, called.document) == (0, {"problems": []})
    assert not (here / "cache").exists(), "check makes nothing"
    called = call("train", "tiny.yaml", "learner.config=null", made, "--json")
    assert called.code == 0 and called.document["steps"] == 2 and (here / "cache").is_dir()


def test_json_holds_nothing_that_json_does_not_know(capsys):
    shell.emit({"a": float("nan"), "b": [1.5, float("inf")]}, as_json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None],
    }
