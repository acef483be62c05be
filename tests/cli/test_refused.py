"""What is said about bad input, which leaves nothing half-written."""

import json
import shutil

import pytest

from tests.cli.conftest import TINY, files_in
from vpretrain.language.steering.arms import ARMS
from vpretrain.run import resources

REFUSED = {
    "a misspelt key": (["desinger.candidates=3"], ["desinger", "did you mean designer?"]),
    "a misspelt key in a section": (
        ["arm=closed_form", "designer.candidats=3"],
        ["designer.candidats", "did you mean candidates?"],
    ),
    "a wrong type": (["budget.steps=many"], ["budget.steps", '"many"', "a whole number (above 0)"]),
    "no override": (["steps"], ["override steps", "key=value"]),
    "no end": (["budget={}"], ["override budget", "steps, tokens, flops, seconds"]),
    "no learner": (
        ["learner.config=null"],
        ["tiny.yaml:19 learner", "`model`", "`config`", "`prepare`"],
    ),
    "no such split": (["evaluate.split=nope"], ["evaluate.split", "'nope'", "['test']"]),
    "attention that cannot be valued": (
        ["arm=token_weights", "learner.attention=flash_attention_2"],
        ["flash_attention_2", "forward mode", "sdpa"],
    ),
    "attention that mixes documents": (
        ["arm=onehot", "learner.attention=flash_attention_2"],
        ["flash_attention_2", "data.batch_size", "sdpa"],
    ),
    "nothing to compare": (["data.feedback.batches=1"], ["value.shrink", "data.feedback.batches"]),
    "a seed without end": (["seed=99999999999"], ["override seed", "below 2147483648"]),
    "a missing file": (
        ["data.stream.0.rows.path=strem.jsonl"],
        ["data.stream.0.rows.path", "data/strem.jsonl", "feedback.jsonl", "stream.jsonl"],
    ),
    "a missing folder": (
        ["data.root=nothing"],
        ["data.stream.0.rows.path", "data.evaluation.test.path", "nothing"],
    ),
    "a folder for a file": (
        ["data.stream.0.rows.path=."],
        ["data.stream.0.rows.path", "folder", "stream.jsonl"],
    ),
    "a binary file": (["data.stream.0.rows.path=binary.jsonl"], ["data/binary.jsonl:1", "UTF-8"]),
    "a missing column": (
        ["data.feedback.rows.solution=answer"],
        [
            "data/feedback.jsonl:1",
            "'answer'",
            "'problem', 'solution'",
            "data.feedback.rows.solution",
        ],
    ),
    "an empty stream": (
        ["data.stream.1.rows.path=empty.jsonl"],
        ["data.stream.1.rows", "no rows", "empty.jsonl"],
    ),
    "no row left": (
        ["data.stream.1.rows.skip_rows=24"],
        ["data.stream.1.rows.skip_rows", "24 rows"],
    ),
    "feedback without solutions": (
        ["data.feedback.rows.path=unsolved.jsonl"],
        ["data/unsolved.jsonl:11", "no column 'solution'", "data/unsolved.jsonl:12", "is empty"],
    ),
    "feedback of raw text": (
        ["data.feedback.rows={kind: chatter, rows: 20}"],
        ["data.feedback.rows feedback:1", "no prompt"],
    ),
    "a row that is not JSON": (
        ["data.feedback.rows.path=torn.jsonl"],
        ["data/torn.jsonl:25", "not JSON"],
    ),
    "feedback in the stream": (
        ["data.stream.0.rows.path=leaky-stream.jsonl"],
        [
            "data.feedback.rows",
            "in the stream",
            "data/feedback.jsonl:4 = data/leaky-stream.jsonl:25",
        ],
    ),
    "feedback in the test set": (
        ["data.evaluation.test.path=leaky-test.jsonl"],
        [
            "data.feedback.rows",
            "in the test rows",
            "data/feedback.jsonl:6 = data/leaky-test.jsonl:25",
        ],
    ),
    "too little feedback": (
        ["data.feedback.batch_size=25"],
        ["data.feedback.batch_size", "25", "1 to 12"],
    ),
    "one row of feedback": (
        ["data.feedback.rows.rows=1"],
        ["data.feedback.batch_size", "1 rows make 2 parts of 0"],
    ),
    "K above the vocabulary": (
        ["arm=closed_form", "designer.candidates=97"],
        ["designer.candidates", "97", "1 to 96"],
    ),
    "S that matches nothing": (
        ["learner.aligned_patterns=['*.nothing.*']"],
        ["learner.aligned_patterns", "*.nothing.*", "model.layers.0.self_attn.q_proj.weight"],
    ),
    "S with too many blocks": (["learner.aligned_blocks=3"], ["learner.aligned_blocks", "1 to 2"]),
    "an unknown arm": (["arm=oneht"], ["arm", "oneht", ", ".join(ARMS.all)]),
    "a window of one token": (["data.window_tokens=1"], ["data.window_tokens", "2 or more"]),
    "an unknown model type": (
        ["learner.config.model_type=lama"],
        ["learner.config.model_type", "did you mean llama?"],
    ),
    "a misspelt model key": (
        ["learner.config.hidden_sise=16"],
        ["learner.config.hidden_sise", "did you mean hidden_size?"],
    ),
    "sizes that do not fit": (
        ["learner.config.hidden_size=17"],
        ["learner.config", "num_attention_heads", "17"],
    ),
    "no such model folder": (
        ["learner.config=null", "learner.model=/no/such/model"],
        ["learner.model", "no such folder", "/no/such/model", "word-problems-majority"],
    ),
    "no such hub id": (
        ["learner.config=null", "learner.model=nobody/nothing"],
        ["learner.model", "nobody/nothing"],
    ),
    "a folder that is no model": (
        ["learner.config=null", "learner.model=data"],
        ["learner.model", "config.json", "data"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(call, here, what):
    overrides, expected = REFUSED[what]
    before = files_in(here)
    called = call("train", "tiny.yaml", *overrides, "--out", "run", "--json")
    assert called.code == 2, called.err
    assert called.out == ""
    for words in expected:
        assert words in called.err
    assert not (here / "run").exists() and files_in(here) == before, "nothing half-written"


def test_models_that_are_not_whole(call, here):
    assert call("train", "tiny.yaml", "--out", "good").code == 0
    model = here / "good" / "model"

    def refused(name):
        return call(
            "train", "tiny.yaml", "learner.config=null", f"learner.model={name}", "--out", "run"
        )

    called = refused("good")
    assert called.code == 2 and "did you mean good/model?" in called.err
    shutil.copytree(model, "untold")
    for file in (here / "untold").glob("tok*"):
        file.unlink()
    called = refused("untold")
    assert called.code == 2 and "no tokenizer" in called.err and "learner.tokenizer" in called.err
    shutil.copytree(model, "torn")
    (here / "torn" / "model.safetensors").write_bytes(
        (model / "model.safetensors").read_bytes()[:999]
    )
    called = refused("torn")
    assert called.code == 2 and "learner.model: cannot be loaded" in called.err
    shutil.copytree(model, "short")
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 3}
    (here / "short" / "config.json").write_text(json.dumps(config))
    called = refused("short")
    assert called.code == 2 and "model.layers.2.input_layernorm.weight" in called.err
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("recipes/language/gsm8k-small.yaml", ["no such recipe", "a folder of the repository"]),
        ("tny.yaml", ["no such recipe", "did you mean tiny.yaml?", "demo-language"]),
        ("demo-langage", ["did you mean demo-language?"]),
        ("data", ["this is a folder"]),
        ("seed=3", ["the recipe comes first"]),
        ("empty.yaml", ["empty.yaml", "mapping of keys"]),
        ("binary.yaml", ["binary.yaml", "UTF-8"]),
        ("broken.yaml", ["broken.yaml:2", "not valid YAML"]),
        ("data/prose.jsonl", ["data/prose.jsonl:2"]),
    ],
)
def test_something_else_than_a_recipe(call, here, recipe, expected):
    (here / "empty.yaml").write_text("# nothing yet\n")
    (here / "binary.yaml").write_bytes(b"\x00\xff")
    (here / "broken.yaml").write_text("seed: 1\nbudget: [\n")
    for verb in ("train", "check", "compare", "doctor"):
        called = call(verb, recipe)
        assert called.code == 2
        assert all(words in called.out + called.err for words in expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--arms", "onehot,feild"], ["--arms", "feild", "closed_form"]),
        (["--arms", "onehot,onehot"], ["--arms", "twice"]),
        (["--arms", ""], ["--arms"]),
        (["--match", "nonsense"], ["--match", "nonsense", "steps", "tokens", "flops", "seconds"]),
        (["--match", "tokens"], ["--budget", "budget.tokens"]),
        (["--budget", 0], ["--budget", "a whole number above 0"]),
        (["--budget", 1.5], ["--budget", "1.5"]),
        (["--budget", "nan"], ["--budget", "nan"]),
        (["--match", "seconds", "--budget", "-1"], ["--budget", "a number above 0"]),
        (["--seeds", 0], ["--seeds", "1 to 1000"]),
        (["--jobs", 0], ["--jobs"]),
        (["--seeds", 1, "--require-interval"], ["--seeds", "--require-interval", "2 or more"]),
        (["--out", "tiny.yaml"], ["--out", "tiny.yaml is a file"]),
        (["--out", "tiny.yaml/deeper"], ["--out", "is a file"]),
        (["--out", ""], ["--out", "empty", "name a place"]),
    ],
)
def test_options_of_compare(call, here, options, expected):
    before = files_in(here)
    called = call("compare", "tiny.yaml", "--arms", "onehot", "--jobs", 1, *options, "--json")
    assert called.code == 2
    assert called.out == ""
    assert all(words in called.err for words in expected)
    assert files_in(here) == before and not (here / "runs").exists()


def test_a_key_of_ten_megabytes_is_not_printed_back(call, here):
    long = "k" * 10_000_000
    (here / "long.yaml").write_text(TINY + f"? {long}\n: 1\n")
    called = call("train", "long.yaml", "--out", "run")
    assert called.code == 2 and "long.yaml" in called.err and "there is no such key" in called.err
    assert len(called.err) < 5000


def test_check_tells_every_problem_at_once(call, here, monkeypatch):
    wrong = [
        "arm=x",
        "designer.kind=closed_form",
        "data.stream.0.rows.path=x.jsonl",
        "data.feedback.rows.path=unsolved.jsonl",
        "data.evaluation.test.prompt=x",
        "designer.candidates=1000",
        "learner.aligned_blocks=1",
    ]
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    before = files_in(here)
    called = call("check", "tiny.yaml", *wrong, "--json")
    problems = called.document["problems"]
    assert called.code == 2
    assert all(set(problem) == {"where", "value", "accepted", "message"} for problem in problems)
    places = [problem["where"] for problem in problems]
    expected = [
        "arm",
        "data.stream.0.rows.path",
        "data/unsolved.jsonl:11",
        "data/unsolved.jsonl:12",
        "data/test.jsonl:1",
        "designer.candidates",
        "memory",
        "disk",
    ]
    assert all(place in places for place in expected)
    assert all(place in called.err for place in expected)
    assert f"{len(problems)} problem(s)" in called.err
    assert files_in(here) == before
    called = call("check", "tiny.yaml", "seeed=1", "budget={}", "--json")
    assert called.code == 2
    assert {problem["where"] for problem in called.document["problems"]} == {
        "override seeed",
        "override budget",
    }


def test_a_run_and_a_comparison_are_never_mixed_in_one_folder(call, here):
    for folder, mark in (("run", "metrics.jsonl"), ("comparison", "runs/step0.json")):
        (here / folder / mark).parent.mkdir(parents=True)
        (here / folder / mark).touch()
    said = call("train", "tiny.yaml", "--out", "comparison")
    assert said.code == 2 and "this folder holds a comparison" in said.err
    said = call("compare", "tiny.yaml", "--out", "run")
    assert said.code == 2 and "this folder holds a run" in said.err


def test_folders_that_are_something_else(call, here):
    before = files_in(here)
    assert "is a file" in call("train", "tiny.yaml", "--out", "tiny.yaml").err
    called = call(
        "prepare",
        "tiny.yaml",
        "learner.config=null",
        "learner.prepare={tokenizer: word_problems, "
        "config: {model_type: llama}, phases: [{steps: 1, learning_rate: 1}]}",
        "--out",
        "data",
    )
    assert called.code == 2 and "no model" in called.err
    called = call("prepare", "tiny.yaml")
    assert called.code == 2 and "learner.prepare" in called.err
    called = call("demo", "visoin")
    assert called.code == 2 and "visoin" in called.err and "language" in called.err
    assert files_in(here) == before


@pytest.mark.parametrize("verb", ["train", "compare", "sweep", "probe", "evaluate"])
def test_a_folder_that_can_have_no_name_is_refused_before_anything_is_read(call, here, verb):
    given = ["none.yaml"] if verb != "evaluate" else ["none", "--tasks", "none.jsonl"]
    if verb == "sweep":
        (here / "none.yaml").write_text(TINY + "sweep: {keys: {seed: [1, 2]}, objectives: [x]}\n")
    if verb in ("train", "compare", "probe"):
        given = ["tiny.yaml", "data.stream.0.rows.path=none.jsonl"]
    called = call(verb, *given, "--out", "x" * 300)
    assert called.code == 2 and "--out" in called.err
    assert "File name too long" in called.err and "name another folder" in called.err
