"""A few cases of ``fuzz.py`` at every run of the tests, and what it found, case by case."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.reliability import broken_recipes, broken_rows, fuzz
from tests.reliability.runs import language_recipe, vision_recipe
from vpretrain.config import recipe as recipes
from vpretrain.language.data import raw_rows
from vpretrain.run.launch import train_one
from vpretrain.run.modalities import SCHEMAS
from vpretrain.system.errors import Problem, UserError


@pytest.fixture(scope="module")
def folder():
    with fuzz.traps() as folder:
        yield folder


def few(count):
    return settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@seed(7)
@few(40)
@given(case=fuzz.KINDS["recipes"][0])
def test_recipes(folder, case):
    assert fuzz.read_recipe(folder, case) in ("works", "refused")


@seed(7)
@few(15)
@given(case=fuzz.KINDS["rows"][0])
def test_rows(folder, case):
    assert fuzz.read_rows(folder, case) in ("works", "refused")


@seed(7)
@few(6)
@given(case=fuzz.KINDS["runs"][0])
def test_runs(folder, case):
    assert fuzz.read_run(folder, case) in ("works", "refused")


@seed(7)
@few(8)
@given(case=fuzz.KINDS["models"][0])
def test_models(folder, case):
    assert fuzz.read_model(folder, case) in ("works", "refused")


@seed(7)
@few(6)
@given(case=fuzz.KINDS["changed"][0])
def test_data_that_changed_under_a_run(folder, case):
    assert fuzz.read_changed(folder, case) in ("works", "refused")


@seed(7)
@few(10)
@given(case=fuzz.KINDS["bombs"][0])
def test_bombs(folder, case):
    assert fuzz.read_bomb(folder, case) in ("works", "refused")


def test_what_the_cases_are_made_from_works(folder):
    (folder / "tiny.yaml").write_text(recipes.dump(language_recipe()))
    assert (
        fuzz.read_recipe(folder, ("tiny.yaml", (folder / "tiny.yaml").read_bytes(), [], False))
        == "works"
    )
    rows = "\n".join(json.dumps(row) for row in broken_rows.GOOD["stream"]).encode()
    spec = {"kind": "jsonl", "path": "rows", "prompt": "problem", "solution": "solution"}
    assert fuzz.read_rows(folder, ("stream", spec, rows, "stop", "onehot")) == "works"


def test_other_exceptions_late_cases_and_nameless_problems_are_told():
    def hangs():
        while True:
            pass

    with pytest.raises(fuzz.Broken, match="KeyError"):
        fuzz.outcome(lambda: {}["x"])
    with pytest.raises(fuzz.Broken, match="no place"):
        fuzz.places(UserError(Problem("somewhere", "", "", "wrong")))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(fuzz.Broken, match="not done"):
        patch.setattr(fuzz, "SECONDS", 0.05)
        fuzz.outcome(hangs)


# ---- what was found


@pytest.mark.parametrize("snippet", broken_recipes.SNIPPETS, ids=lambda text: ascii(text[:20]))
def test_every_snippet_of_yaml(folder, snippet):
    text = f"{snippet}\nmodality: language\n".encode()
    assert fuzz.read_recipe(folder, ("tiny.yaml", text, [], False)) in ("works", "refused")
    fuzz.read_recipe(folder, ("demo-language", b"", [f"description={snippet}"], False))


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-there/x", "a\0b", "loop/x"])
@pytest.mark.parametrize("key", ["data.root", "data.stream.0.rows.path"])
def test_paths_that_cannot_be_looked_up(folder, path, key):
    spec = "data.stream.0.rows={kind: jsonl, path: x, text: x}"
    try:
        loaded = language_recipe(spec, f"{key}={json.dumps(path)}")
    except UserError as error:
        (problem,) = error.problems
        assert problem.where == f"override {key}" and problem.message
    else:
        assert path == "loop/x" and loaded


HUGE = {
    language_recipe: [
        "data.stream.0.rows.rows",
        "data.stream.1.rows.rows",
        "data.batch_size",
        "data.window_tokens",
        "designer.layers",
        "learner.config.num_hidden_layers",
        "learner.config.hidden_size",
        "designer.candidates",
    ],
    vision_recipe: [
        "data.stream.0.pictures.count",
        "learner.config.num_hidden_layers",
        "designer.depth",
        "designer.base",
        "learner.head.prototypes",
    ],
}


@pytest.mark.parametrize(
    ("make", "key"), [(make, key) for make, keys in HUGE.items() for key in keys]
)
def test_huge_numbers_are_refused_at_once(folder, make, key):
    text = recipes.dump(make()).encode()
    # No memory holds the largest; it is asked for in one piece, so that it is refused and not
    # filled.
    overrides = ["arm=ascent", f"{key}={10**13}"]
    assert fuzz.read_recipe(folder, ("tiny.yaml", text, overrides, True)) == "refused"


def test_text_that_is_no_character_can_be_printed():
    with pytest.raises(UserError, match="surrogate"):
        recipes.load("demo-language", ['description="\\ud800"'], schemas=SCHEMAS)
    str(Problem("\ud800", "\ud800", "\ud800", "\ud800")).encode()


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.parquet"])
def test_cut_and_damaged_files_are_named(tmp_path, name):
    whole = gzip.compress(b'{"a": "b"}\n' * 1000)
    for content in (whole[:-9], whole[:20] + bytes(40) + whole[60:], b""):
        (tmp_path / name).write_bytes(content)
        try:
            list(raw_rows.lines(tmp_path / name))
        except UserError as error:
            assert name in str(error)


def test_a_metric_that_nobody_measures_is_told_before_the_first_step(tmp_path):
    steps = []
    recipe = language_recipe(
        "arm=onehot", "evaluate.every=2", "checkpoint.keep_best=test/los", "budget.steps=4"
    )
    with pytest.raises(UserError, match=r"checkpoint\.keep_best") as caught:
        train_one(recipe, tmp_path / "run", lambda record, fraction: steps.append(record))
    assert not steps and "test/nll" in caught.value.problems[0].accepted
    with pytest.raises(UserError, match=r"evaluate\.every"):
        language_recipe("checkpoint.keep_best=test/nll", "evaluate.every=0")
