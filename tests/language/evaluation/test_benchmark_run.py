"""``vpretrain evaluate`` as a user meets it."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="the eval extra is not installed")

from tests.language.evaluation.harness_models import ROWS, byte_tokenizer, tiny_model
from vpretrain import cli
from vpretrain.language.evaluation.benchmark_run import _keep, label


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two model folders, and a run's folder."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in ((0, "model"), (1, "other"), (0, "run/model")):
        tiny_model(seed).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    (folder / "run" / "recipe.yaml").write_text("modality: language\n")
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "recipe.yaml").write_text("modality: language\n")
    return folder


@dataclass
class Called:
    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


@pytest.fixture
def call(models, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "other", "run", "unfinished"):
        (tmp_path / name).symlink_to(models / name)
    data = tmp_path / "data"
    (data / "gsm8k").mkdir(parents=True)
    (data / "gsm8k" / "test.jsonl").write_text(lines(ROWS["gsm8k"]))
    for name in ("math500", "mmlu", "mbpp"):
        (data / f"{name}.jsonl").write_text(lines(ROWS[name]))
    (data / "mine.jsonl").write_text(
        lines({"prompt": row["question"], "solution": row["answer"]} for row in ROWS["gsm8k"])
    )
    (data / "empty.jsonl").write_text("\n")
    (data / "torn.jsonl").write_text(lines(ROWS["gsm8k"]) + '{"question": ')

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["vpretrain", "evaluate", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Called(code, *capfd.readouterr())

    return call


def test_a_table_of_every_kind_of_task(call, tmp_path):
    called = call(
        "run",
        "--tasks",
        "gsm8k,mmlu,data/mine.jsonl",
        "--data-root",
        "data",
        "--new-tokens",
        8,
        "--limit",
        3,
        "--json",
    )
    assert called.code == 0, called.err
    table = called.document
    assert set(table) == {"gsm8k", "mmlu", "data/mine.jsonl"}
    assert set(table["gsm8k"]) == {"strict/pass@1", "flexible/pass@1"}
    assert set(table["mmlu"]) == {"accuracy"}
    assert set(table["data/mine.jsonl"]) == {"strict/pass@1", "flexible/pass@1", "nll"}
    for metrics in table.values():
        for metric, row in metrics.items():
            assert {"value", "stderr", "n", "version", "prompt"} <= set(row)
            assert row["n"] == 3 or metric == "nll"
            assert row["stderr"] >= 0
    assert "{question}" in table["gsm8k"]["strict/pass@1"]["prompt"]
    folder = tmp_path / "runs" / "evaluate-run"
    kept = [
        json.loads(line) for line in (folder / "generations-gsm8k.jsonl").read_text().splitlines()
    ]
    assert len(kept) == 3 and {
        "prompt",
        "completion",
        "expected",
        "strict",
        "flexible",
        "origin",
    } <= set(kept[0])
    assert (
        "ends with one line" not in kept[0]["completion"]
        and ROWS["gsm8k"][0]["question"] in kept[0]["prompt"]
    )
    assert (folder / "generations-data_mine.jsonl").is_file()
    assert json.loads((folder / "evaluation.json").read_text())["tasks"] == table
    assert "strict/pass@1" in called.err and str(folder.relative_to(tmp_path)) in called.err


def test_files_of_ones_own_are_asked_as_the_run_asks_its_rows(call, tmp_path, models):
    run = tmp_path / "worded"
    run.mkdir()
    (run / "model").symlink_to(models / "model")
    (run / "recipe.yaml").write_text(
        "modality: language\n"
        "data:\n"
        "  parse_special_tokens: true\n"
        "  evaluation: {test: {kind: jsonl, path: t.jsonl, format: qa@1}}\n"
    )
    (tmp_path / "rows.jsonl").write_text(lines([{"question": "1 + 1<eos>", "answer": "2"}]))
    options = ("--tasks", "rows.jsonl", "--new-tokens", 2, "--out", "o", "--json")
    called = call("worded", *options)
    assert called.code == 0, called.err
    (kept,) = (tmp_path / "o" / "generations-rows.jsonl").read_text().splitlines()
    assert json.loads(kept)["prompt"] == "Question: 1 + 1<eos>\nAnswer: "
    parsed = called.document["rows.jsonl"]["nll"]["value"]
    (run / "recipe.yaml").write_text(
        (run / "recipe.yaml").read_text().replace("tokens: true", "tokens: false")
    )
    spelled = call("worded", *options).document["rows.jsonl"]["nll"]["value"]
    assert parsed != spelled, "an end token is another thing than the five letters of its name"
    (tmp_path / "rows.jsonl").write_text(lines([{"prompt": "1 + 1", "solution": "2"}]))
    refused = call("worded", *options)
    assert refused.code == 2 and "'question'" in refused.err and "format" in refused.err


def test_against_another_model_item_by_item(call, tmp_path):
    arguments = ("--tasks", "data/mine.jsonl", "--new-tokens", 2, "--out", "o", "--json")
    table = call("model", "--against", "other", *arguments).document["data/mine.jsonl"]["nll"]
    other = call("other", *arguments[:-2], "p", "--json").document["data/mine.jsonl"]["nll"]
    refused = call("other", *arguments)
    assert refused.code == 2 and "holds the evaluation of model" in refused.err
    assert table["against"] == pytest.approx(other["value"])
    assert table["difference"] == pytest.approx(table["value"] - other["value"])
    assert table["ci95"][0] <= table["difference"] <= table["ci95"][1] and 0 <= table["p"] <= 1
    assert (tmp_path / "o" / "against" / "generations-data_mine.jsonl").is_file()
    same = call("model", "--against", "run", *arguments).document["data/mine.jsonl"]
    assert same["nll"]["difference"] == 0 and same["strict/pass@1"]["p"] == 1


def test_samples_and_columns_and_parquet(call, tmp_path):
    from pyarrow import Table, parquet

    rows = [{"q": "1 + 1", "a": "= 2"}, {"q": "1 + 2", "a": "= 3"}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    called = call(
        "model",
        "--tasks",
        "rows.parquet",
        "--prompt-column",
        "q",
        "--solution-column",
        "a",
        "--answer",
        r"= (\d+)",
        "--samples",
        4,
        "--temperature",
        0.8,
        "--new-tokens",
        4,
        "--out",
        "o",
        "--json",
    )
    assert called.code == 0, called.err
    ks = {f"{way}/pass@{k}" for way in ("strict", "flexible") for k in (1, 2, 4)}
    assert set(called.document["rows.parquet"]) == ks | {"nll"}
    kept = [
        json.loads(line)
        for line in (tmp_path / "o" / "generations-rows.parquet.jsonl").read_text().splitlines()
    ]
    assert [row["expected"] for row in kept] == ["2"] * 4 + ["3"] * 4


def test_code_is_run_only_by_leave(call, runs_programs):
    arguments = ("model", "--tasks", "mbpp", "--data-root", "data", "--new-tokens", 4, "--json")
    refused = call(*arguments)
    assert refused.code == 2 and "--allow-code" in refused.err and refused.out == ""
    assert call(*arguments, "--allow-code").document["mbpp"]["strict/pass@1"]["value"] == 0.0


@pytest.mark.parametrize(
    ("model", "options", "description"),
    [
        ("nothing/at/all", ["--tasks", "gsm8k"], ["MODEL", "no such folder"]),
        ("data", ["--tasks", "gsm8k"], ["MODEL", "data"]),
        ("unfinished", ["--tasks", "gsm8k"], ["MODEL", "did not finish"]),
        (
            "model",
            ["--tasks", "gsm8k", "--against", "nothing/at/all"],
            ["--against", "no such folder"],
        ),
        (
            "model",
            ["--tasks", "gsm9k"],
            ["gsm9k", "did you mean gsm8k", "math500", "mbpp", "omega"],
        ),
        ("model", ["--tasks", "gsm8k,gsm8k"], ["--tasks", "once"]),
        ("model", ["--tasks", ","], ["--tasks", "mmlu"]),
        (
            "model",
            ["--tasks", "omega"],
            ["data/omega.jsonl", "data/omega/test.parquet", "'messages'", "'ground_truth'"],
        ),
        ("model", ["--tasks", "nope.jsonl"], ["nope.jsonl", "no such file", "'prompt'"]),
        ("model", ["--tasks", "data/empty.jsonl"], ["data/empty.jsonl", "no rows"]),
        (
            "model",
            [
                "--tasks",
                "data/torn.jsonl",
                "--prompt-column",
                "question",
                "--solution-column",
                "answer",
            ],
            ["data/torn.jsonl:5", "JSON"],
        ),
        (
            "model",
            ["--tasks", "data/gsm8k/test.jsonl"],
            ["test.jsonl:1", "'prompt'", "'question'", "--prompt-column"],
        ),
        (
            "model",
            ["--tasks", "data/mine.jsonl", "--answer", "= (x)"],
            ["mine.jsonl:1", "matches nothing"],
        ),
        (
            "model",
            ["--tasks", "data/mine.jsonl", "--answer", "("],
            ["--answer", "regular expression"],
        ),
        ("model", ["--tasks", "data/mine.jsonl", "--answer", "x"], ["--answer", "one group"]),
        ("model", ["--tasks", "gsm8k", "--samples", 2], ["--samples", "greedy", "--temperature"]),
        ("model", ["--tasks", "gsm8k", "--samples", 0], ["--samples"]),
        ("model", ["--tasks", "gsm8k", "--limit", 0], ["--limit"]),
        ("model", ["--tasks", "gsm8k", "--temperature", -1], ["--temperature"]),
        ("model", ["--tasks", "gsm8k", "--temperature", "inf"], ["--temperature", "greedy"]),
        ("model", ["--tasks", "gsm8k", "--new-tokens", 1024], ["--new-tokens", "1024 positions"]),
        ("model", ["--tasks", "gsm8k", "--device", "abacus"], ["--device", "abacus"]),
        ("model", ["--tasks", "gsm8k", "--out", "data/mine.jsonl"], ["--out", "is a file"]),
    ],
)
def test_refused(call, tmp_path, model, options, description):
    called = call(model, "--data-root", "data", *options, "--json")
    assert called.code == 2, called.err
    assert called.out == ""
    for words in description:
        assert words in called.err
    assert not (tmp_path / "runs").exists()


def test_rows_that_are_not_of_the_benchmark(call, tmp_path):
    for name, row, description in (
        ("gsm8k/test", {"question": "?", "answer": "no mark"}, "####"),
        ("math500", {"problem": "?", "answer": " "}, "'answer'"),
        ("mmlu", {"question": "?", "choices": ["0", "1"], "answer": 0}, "2 options"),
        ("mmlu", {"question": "?", "choices": list("0123"), "answer": 4}, "0 to 3"),
    ):
        (tmp_path / "data" / f"{name}.jsonl").write_text(lines([row]))
        called = call("model", "--tasks", name.partition("/")[0], "--data-root", "data")
        assert called.code == 2 and f"{name}.jsonl:1" in called.err and description in called.err


def test_without_a_data_folder_and_without_a_network(call):
    called = call("model", "--tasks", "gsm8k")
    assert called.code == 2 and "--data-root" in called.err and "openai/gsm8k" in called.err
    called = call("model", "--tasks", "omega")
    assert called.code == 2 and "--data-root" in called.err


def test_without_the_extra(call, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "lm_eval" else find(name, *a)
    )
    called = call("model", "--tasks", "gsm8k", "--data-root", "data")
    assert called.code == 2 and "pip install 'vpretrain[eval]'" in called.err


def test_tasks_of_like_names_keep_files_of_their_own(tmp_path):
    tasks = ("a/b.jsonl", "a_b.jsonl", "a b.jsonl", "c.jsonl")
    _keep({task: SimpleNamespace(generations=[{"of": task}]) for task in tasks}, tmp_path)
    kept = {path.name: json.loads(path.read_text())["of"] for path in tmp_path.iterdir()}
    names = [f"generations-{name}.jsonl" for name in ("a_b", "a_b-2", "a_b-2-2", "c")]
    assert kept == dict(zip(names, tasks, strict=True))


def test_the_default_folder_is_named_by_run_or_hub_id(models):
    assert label(str(models / "run" / "model")) == label(str(models / "run")) == "run"
    assert label("org/name") == "org-name"


def test_an_evaluation_leaves_nothing_of_an_earlier_one(call, tmp_path):
    options = ("--data-root", "data", "--new-tokens", 2, "--out", "o")
    assert call("model", "--tasks", "gsm8k", "--against", "other", *options).code == 0
    assert (tmp_path / "o" / "against").is_dir()
    assert call("model", "--tasks", "data/mine.jsonl", *options).code == 0
    kept = {path.name for path in (tmp_path / "o").iterdir()}
    assert kept == {"evaluation.json", "generations-data_mine.jsonl"}
