"""``vpretrain init``, ``--version`` and completion: what a newcomer types first."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from vpretrain import __version__, cli
from vpretrain.cli import init
from vpretrain.cli.tables import examined_lines
from vpretrain.config.recipe import load
from vpretrain.language.init_places import Place, halved
from vpretrain.language.init_recipe import ROWS_A_STEP, fit
from vpretrain.run.modalities import SCHEMAS
from vpretrain.studies.check import Examined, FirstLook, Needs, check
from vpretrain.system.errors import Problem, UserError


def rows(first, last):
    return [
        {"question": f"What is {a} plus {a + 3}?", "answer": f"{a} + {a + 3} = {2 * a + 3}"}
        for a in range(first, last)
    ]


def write(path, result):
    path.write_text("".join(json.dumps(row) + "\n" for row in result), encoding="utf-8")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my notes").mkdir()
    for number in range(3):
        (tmp_path / "my notes" / f"{number}.txt").write_text(
            f"In the year {number} it rained: every day.\n" * 8
        )
    write(tmp_path / "verified.jsonl", rows(10, 34))
    write(tmp_path / "more.jsonl", rows(50, 60))
    write(tmp_path / "odd.jsonl", [{"frage": "Was?", "antwort": f"Das {n}."} for n in range(12)])
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["vpretrain", *arguments])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr()
        return 0, capsys.readouterr()

    return call


MODEL = ("--model", "word-problems-majority")


def test_the_recipe_passes_check_and_holds_rows_out(here, call):
    code, said = call(
        "init", *MODEL, "--stream", "my notes", "--feedback", "verified.jsonl", "--json"
    )
    assert code == 0 and json.loads(said.out) == {"recipe": "steer.yaml", "problems": []}
    # The packaged model knows sums alone, both sets of rows are small, the stream was not searched.
    assert "no problem found that would stop a run; 5 warnings above" in said.err
    assert check("steer.yaml", []) == []
    assert "docs/" not in Path("steer.yaml").read_text(), "a wheel has none"
    recipe = load("steer.yaml", schemas=SCHEMAS)
    assert recipe.data.feedback.rows.rows == recipe.data.evaluation["test"].skip_rows == 12
    assert "the first 12 rows of verified.jsonl steer, the others are held out" in said.err
    assert recipe.data.batch_size * recipe.learner.accumulate == ROWS_A_STEP
    assert "steered by verified" in recipe.description and recipe.data.window_tokens == 512


def test_what_is_held_out_can_be_named_and_so_can_columns(here, call):
    code, _ = call(
        "init",
        *MODEL,
        "--stream",
        "my notes/*.txt",
        "--feedback",
        "odd.jsonl",
        "--feedback-columns",
        "frage,antwort",
        "--evaluation",
        "more.jsonl",
        "--evaluation-columns",
        "question,answer",
        "--out",
        "my new/other.yaml",
    )
    recipe = load("my new/other.yaml", schemas=SCHEMAS)
    assert code == 0
    text = Path("my new/other.yaml").read_text()
    assert text.count("'my new/other.yaml'") == text.count("my new/") == 3
    assert (
        recipe.data.feedback.rows.solution == "antwort"
        and recipe.data.evaluation["test"].prompt == "question"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--stream", "none.jsonl", "--feedback", "verified.jsonl"], ["--stream", "no such file"]),
        (
            ["--stream", "my notes", "--feedback", "odd.jsonl"],
            ["--feedback-columns", "frage, antwort"],
        ),
        (["--stream", "my notes", "--feedback", "my notes"], ["--feedback", "JSON Lines"]),
        (
            ["--stream", "my notes", "--feedback", "a/hub-set"],
            ["--evaluation", "not in the feedback"],
        ),
        (
            ["--stream", "a/hub-set", "--feedback", "verified.jsonl"],
            ["--stream-columns", "not looked up"],
        ),
        (
            ["--stream", "my notes/*.{md,rst}", "--feedback", "verified.jsonl"],
            ["--stream", "no file matches"],
        ),
        (
            ["--stream", "nil://host/a.jsonl", "--feedback", "verified.jsonl"],
            ["nil://host/a.jsonl", "no place of the kind nil://"],
        ),
        (["--stream", "broken.jsonl", "--feedback", "verified.jsonl"], ["broken.jsonl:1", "JSON"]),
        (["--stream", "my notes"], ["--feedback", "no terminal"]),
        (
            ["--stream", "my notes", "--feedback", "verified.jsonl", "--model", ""],
            ["--model", "no terminal", init.TEXT_MODEL],
        ),
        (
            ["--stream", "my notes", "--feedback", "verified.jsonl", "--model", "no/where"],
            ["--model", "no such folder"],
        ),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_is_written(given, said, here, call, monkeypatch):
    (here / "broken.jsonl").write_text("{")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, outputs = call("init", *MODEL, *given)
    assert code == 2 and all(word in outputs.err for word in said)
    assert not (here / "steer.yaml").exists()


def test_a_file_that_is_there_is_left_alone(here, call):
    (here / "steer.yaml").write_text("mine")
    code, said = call("init", *MODEL, "--stream", "my notes", "--feedback", "verified.jsonl")
    assert code == 2 and "--out" in said.err and (here / "steer.yaml").read_text() == "mine"


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}


def test_the_estimate_of_a_row_is_near_what_a_pass_keeps():
    """What autograd holds for the backward pass, counted once a storage, is between a third and the
    whole of the estimate.
    """
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    ids = torch.arange(128)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    kept = sum(size for size, _ in held.values())
    assert loss.isfinite()
    row = 128 * (4 * 4 * (12 * 64 + 4 * 128) + 12 * 512)
    assert row / 3 < kept < row


def test_less_memory_gives_smaller_batches_and_then_checkpointing():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    fixed = 16 * sum(p.numel() for p in model.parameters())
    fits = [fit(model, 512, fixed + spare * 2**20) for spare in (4096, 150, 60, 20)]
    assert [result.batch_size for result in fits] == sorted(
        (result.batch_size for result in fits), reverse=True
    )
    assert (
        fits[0].batch_size == ROWS_A_STEP and not fits[0].checkpointing and fits[-1].checkpointing
    )
    assert all(result.batch_size * result.accumulate == ROWS_A_STEP for result in fits)
    assert fit(model, 512, None).batch_size == ROWS_A_STEP


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A tiny ViT, and noise in folders: unlabelled, labelled, and labelled apart with a
    class more.
    """
    monkeypatch.chdir(tmp_path)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = AutoConfig.for_model("dinov3_vit", **shape, image_size=32, patch_size=8)
    AutoModel.from_config(config).save_pretrained("vit")
    draw = numpy.random.default_rng(0)
    for folder, count, classes in (("unlabelled", 6, 0), ("my pictures", 12, 3), ("apart", 4, 4)):
        for number in range(count):
            images = Path(folder, "images") if classes else Path(folder)
            images.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=numpy.uint8)).save(
                images / f"{number:02}.jpg"
            )
            if classes:
                labels = draw.integers(0, classes, (40, 48), dtype=numpy.uint8)
                labels[0, 0] = 255
                Path(folder, "labels").mkdir(exist_ok=True)
                Image.fromarray(labels).save(Path(folder, "labels", f"{number:02}.png"))
    return ("init", "--model", "vit", "--stream", "unlabelled", "--feedback", "my pictures")


def test_a_folder_of_pictures_makes_a_vision_recipe_that_passes_check(pictures, call):
    Path("unlabelled", "README.txt").write_text("Where these come from.")
    code, said = call(*pictures, "--json")
    assert (code, json.loads(said.out)) == (0, {"recipe": "steer.yaml", "problems": []})
    assert "the first 9 pictures of my pictures steer" in said.err
    assert "docs/" not in Path("steer.yaml").read_text()
    data = load("steer.yaml", schemas=SCHEMAS).data
    steers, measured = data.feedback.sets[0], data.evaluation["test"][0]
    assert steers.pictures.classes == measured.classes == 3
    assert steers.pictures.count == steers.train + steers.meta == measured.skip == 9


def test_pictures_that_are_measured_on_can_be_named(pictures, call):
    code, _ = call(*pictures, "--evaluation", "apart", "--out", "other.yaml")
    data = load("other.yaml", schemas=SCHEMAS).data
    assert code == 0 and data.evaluation["test"][0].images == Path("apart/images")
    assert (
        data.feedback.sets[0].pictures.classes == 4 and data.feedback.sets[0].pictures.count is None
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--feedback", "unlabelled"], ["--feedback", "labels/NAME.png"]),
        (["--feedback", "apart"], ["--feedback", "4 pictures", "11 or more"]),
        (["--model", "nowhere"], ["--model", "nowhere"]),
        (["--model", "word-problems-majority"], ["--model", "LlamaModel", "DINOv3"]),
        (["--model", ""], ["--model", init.PICTURES_MODEL]),
        (["--stream-columns", "text"], ["--stream", "no columns"]),
    ],
)
def test_pictures_that_cannot_be_used_are_said_and_nothing_is_written(given, said, pictures, call):
    code, outputs = call(*pictures, *given)
    assert code == 2 and all(word in outputs.err for word in said), outputs.err
    assert not Path("steer.yaml").exists()


def test_version_and_completion(call):
    assert call("--version")[1].out == f"vpretrain {__version__}\n"
    environment = {
        **os.environ,
        "_VPRETRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": "vpretrain rec",
        "COMP_CWORD": "1",
    }
    program = Path(sys.executable).parent / "vpretrain"
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=120)
    assert "recipes" in done.stdout.split()


def test_files_of_other_libraries_are_named_like_any_other(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas writes the CSV that is read here")
    datasets = pytest.importorskip("datasets")
    (tmp_path / "list.json").write_text(json.dumps(rows(1, 21), indent=2), encoding="utf-8")
    pandas.DataFrame(rows(1, 21)).to_csv(tmp_path / "table.csv.gz", index=False)
    datasets.Dataset.from_list(rows(1, 21)).save_to_disk(tmp_path / "saved")
    for name, kind in (("list.json", "jsonl"), ("table.csv.gz", "csv"), ("saved", "arrow")):
        place, rest = halved(Place("--feedback", str(tmp_path / name)))
        section = place.section(solutions=True)
        assert (section["kind"], section["rows"]) == (kind, 10)
        assert (section["prompt"], section["solution"]) == ("question", "answer")
        assert rest.section(solutions=True)["skip_rows"] == 10


def test_a_folder_of_several_endings_is_read_whole_and_the_rest_is_said(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "b.md", "c.pdf", ".hidden.txt"):
        (tmp_path / name).write_text("text\n")
    place = Place("--stream", str(tmp_path))
    section = place.section(solutions=False)
    assert section == {"kind": "text", "path": f"{tmp_path}/*.{{md,txt}}"}
    assert place.left_out() == "1 x .pdf"
    (tmp_path / "deep" / "d.md").write_text("text\n")
    assert place.section(solutions=False)["path"] == f"{tmp_path}/**/*.{{md,txt}}"
    assert [file.name for file in place.files()] == ["b.md", "d.md", "a.txt"]


def test_a_folder_of_several_kinds_makes_a_source_of_each(here, call):
    write(here / "my notes" / "sums.jsonl", [{"text": f"{n} + {n} = {2 * n}"} for n in range(9)])
    (here / "my notes" / "table.csv").write_text("colour,size\nred,3\n")
    code, said = call("init", *MODEL, "--stream", "my notes", "--feedback", "verified.jsonl")
    text, sums = load("steer.yaml", schemas=SCHEMAS).data.stream
    assert code == 0 and "these are not read: 1 x .csv" in said.err
    assert (text.name, text.weight) == ("my notes-text", 3.0)
    assert (sums.rows.kind, sums.rows.text, sums.weight) == ("jsonl", "text", 9.0)


@pytest.mark.parametrize(("count", "steering"), [(8, 4), (100, 50), (150, 86), (400, 300)])
def test_few_examples_are_shared_out_so_that_a_verdict_means_something(tmp_path, count, steering):
    write(tmp_path / "a.jsonl", rows(1, count + 1))
    steers, measured = halved(Place("--feedback", str(tmp_path / "a.jsonl")))
    assert (steers.part, measured.part) == ((("rows", steering),), (("skip_rows", steering),))


def test_places_are_named_as_in_recipes_and_settings_beside_rows_are_none(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("b.jsonl", "c.jsonl"):
        write(tmp_path / "a" / name, rows(1, 4))
    (tmp_path / "a" / "a.json").write_text('{"title": "settings"}')
    for spelled in ("a/{b,c}.jsonl", "*/*.jsonl", f"file://{tmp_path}/a/*.jsonl"):
        place = Place("--stream", spelled if "//" in spelled else f"{tmp_path}/{spelled}")
        assert [file.name for file in place.files()] == ["b.jsonl", "c.jsonl"]
        assert place.section(solutions=False)["prompt"] == "question"
    folder = Place("--stream", str(tmp_path / "a"))
    assert folder.section(solutions=True)["path"] == f"{tmp_path}/a/*.jsonl"
    assert [each.kind for each in folder.by_kind()] == ["jsonl"]
    assert folder.left_out({"jsonl"}) == "1 x .json"


def test_a_long_run_is_said_with_a_shorter_one():
    def lines(look, meta=None, evaluation=None):
        need = Needs(2**30, 2**30, 600.0, 2.0, 6.0, meta, evaluation, look)
        return list(examined_lines(Examined([], need)))

    assert lines(None)[0] == "no problem found" and len(lines(None)) == 2
    assert lines(None, 9.0, 30.0)[1].endswith(
        "add 9 s for each meta step and 30 s for each evaluation"
    )
    assert lines(FirstLook("budget.steps=9", 300.0, 580.0))[2:] == [
        "that is long: for a first look of about 5 min add",
        "  budget.steps=9",
    ]
    start = "vpretrain compare 'my notes/a.yaml' --arms onehot,token_weights"
    command, out = f"{start},fixed_random_direction", Path("my notes/a.yaml")
    need = Needs(0, 0, 600.0, 2.0, 6.0, None, None, FirstLook("budget.steps=9", 300.0, 580.0))
    assert list(init._next_commands(out, command, Examined([], need))) == [
        "next, for a first look of about 10 min:",
        f"  {start} --seeds 1 --out runs/first-look budget.steps=9",
        "then, for a verdict (9 runs, 1.5 h or more here):",
        f"  {command}",
    ]
    assert list(init._next_commands(out, command, Examined([Problem("a", "", "", "b")], None))) == [
        "fix this in my notes/a.yaml, then: vpretrain check 'my notes/a.yaml'"
    ]
    said = list(examined_lines(Examined([], need), first_look=False))
    assert len(said) == 2, "one figure for it, beside its command"
    short = Examined([], replace(need, first_look=None, seconds=60.0))
    assert list(init._next_commands(out, command, short)) == [
        "next, for a verdict (9 runs, 9 min or more here):",
        f"  {command}",
    ]
    several = Examined([], replace(need, first_look=None, seconds=180.0))
    assert list(init._next_commands(out, command, several)) == [
        "next, for a first look of 6 min or more:",
        f"  {start} --seeds 1",
        "then, for a verdict (9 runs, 27 min or more here):",
        f"  {command}",
    ]


def test_columns_that_no_name_tells_are_asked_for(tmp_path, monkeypatch, capsys):
    write(tmp_path / "odd.jsonl", [{"frage": "Was?", "antwort": "Das."}])
    place = Place("--feedback", str(tmp_path / "odd.jsonl"))
    with pytest.raises(UserError, match="feedback-columns"):
        init._with_columns(place, solutions=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("frage,antwort\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert init._with_columns(place, solutions=True).columns == ("frage", "antwort")
    assert "frage, antwort. Which is that of the prompt" in capsys.readouterr().err
