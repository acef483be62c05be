"""How the command line speaks where nobody watches, and what it asks."""

import io
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

from vpretrain.cli import init, runs, shell, tables
from vpretrain.config.recipe import dump, load
from vpretrain.run.modalities import SCHEMAS
from vpretrain.system.errors import Stopped, UserError


def test_a_redirected_table_is_as_wide_as_columns_says(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert shell.console_for_people(False).width == 140
    monkeypatch.setenv("COLUMNS", "72")
    assert shell.console_for_people(False).width == 72


def test_progress_within_a_run_is_told_every_30_seconds_and_with_the_time_left():
    now = [1000.0]
    console = Console(file=io.StringIO(), width=140)
    with shell.ShownProgress(console, lambda: now[0]) as progress:
        progress(0, 3, "reading data", 0.0)
        now[0] += 1000
        progress(0, 3, "step 0", 0.0)
        for second in range(100):
            now[0] += 1
            progress(0, 3, f"field, seed 0: step {second}, 312 tokens/s", second / 100)
        progress(1, 3, "field, seed 0", 0.0)
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == ["0 of 3: reading data", "0 of 3: step 0"]
    assert lines[-1] == "1 of 3: field, seed 0, about 3 min left"
    assert 5 <= len(lines) <= 7 and all("left" in line for line in lines[3:])
    assert "312 tokens/s" in lines[4]


def test_no_time_is_estimated_from_a_first_step():
    """What precedes it takes as long as many steps: it would be hours too much."""
    now, console = [0.0], Console(file=io.StringIO(), width=140)
    with shell.ShownProgress(console, lambda: now[0]) as progress:
        progress(0, 12, "step 0", 0.0)
        for underway in (0.004, 0.5):
            now[0] += 31
            progress(0, 12, "onehot, seed 0", underway)
    first, second = console.file.getvalue().splitlines()[1:]
    assert first == "0 of 12: onehot, seed 0" and "left" in second


def test_steps_are_shown_in_what_the_stream_is_counted_in():
    console = Console(file=io.StringIO(), width=140)
    with shell.ShownSteps(console, "images") as shown:
        shown({"step": 3, "loss": 1.5, "tokens_per_second": 64.0}, 0.5)
    assert "step 3  loss 1.500  64 images/s" in console.file.getvalue()


def test_enter_takes_the_model_that_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert init._asked("--model", "Model", "word-problems-majority") == "word-problems-majority"


def test_doctor_ends_with_what_to_do():
    def advice(chosen, **errors):
        rows = [
            {"name": name, "supported": True, "relative_error": error, "seconds": seconds}
            for seconds, (name, error) in enumerate(errors.items(), 1)
        ]
        return tables.doctor_advice({"estimators": rows}, chosen)

    assert "the fastest that is" in advice("a", a=1e-4, b=1e-6)
    assert "value.estimator=a is 2.0 times as fast" in advice("b", a=1e-4, b=1e-6)
    assert (
        advice("a", a=0.2, b=1e-6)
        == "the recipe's a is not exact enough here: set value.estimator=b"
    )
    assert "none of them is exact" in advice("a", a=0.2)


def test_a_report_of_several_folders_leaves_their_own_alone():
    assert runs._report_place([Path("/r/a")]) == Path("/r/a/report.html")
    assert runs._report_place([Path("/r/a"), Path("/r/b")]) == Path("/r/report-a-b.html")
    many = [Path(f"/r/{name}") for name in "abcde"]
    assert runs._report_place(many) == Path("/r/report-a-b-3-more.html")


def test_a_run_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a #1: {b}"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    recipe = load("demo-language", [], schemas=SCHEMAS)
    (folder / "recipe.yaml").write_text(dump(recipe))
    assert shell.resolved_recipe(str(folder), None).learner.model == str(folder / "model")


@pytest.mark.parametrize("name", ["recipe.yaml", "tensorboard", "model"])
def test_what_no_run_wrote_is_not_overwritten_by_one(name, tmp_path):
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"--out: no run wrote {name} here"):
        shell.results_folder(tmp_path, "a run")
    shell.results_folder(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    shell.results_folder(tmp_path, "a run")


def test_a_prompt_that_is_left_is_no_bug(monkeypatch):
    def left(*given, **options):
        raise typer.Abort

    monkeypatch.setattr(init.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(init.typer, "prompt", left)
    with pytest.raises(Stopped, match="you; the same command"):
        init._asked("--model", "a model")


def test_limits_that_a_comparison_leaves_out_are_told(capsys):
    recipe = load("demo-language", ["budget={steps: 4, seconds: 60}"], schemas=SCHEMAS)
    assert runs._with_budget(recipe, "steps", None).budget.seconds is None
    assert "budget.seconds: left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no budget.tokens to match by \(but steps, seconds\)"):
        runs._with_budget(recipe, "tokens", None)
