"""Comparisons: budgets are kept, the same again is the same, arms see the same stream."""

import io
import json
import os
import shutil
import signal

import pytest
from rich.console import Console

from tests.test_recipes import shrunken
from vpretrain.cli.tables import comparison_table
from vpretrain.run import flops
from vpretrain.run.records import Records
from vpretrain.studies import compare as comparison
from vpretrain.system.errors import Fault, Stopped, UserError
from vpretrain.system.lock import writing

ARMS = ("onehot", "closed_form")


def compared(out, overrides=(), arms=ARMS, seeds=2, match="steps", amount=6, **options):
    recipe = shrunken("demo-language", "value.meta_period=2", *overrides)
    recipe = comparison.with_budget(recipe, match, amount)
    return comparison.compare(recipe, arms=list(arms), seeds=seeds, match=match, out=out, **options)


def without_times(table, seeds=(0, 1)):
    runs = [run for run in table["runs"] if run["seed"] in seeds]
    return [{k: v for k, v in run.items() if k != "seconds"} for run in runs]


@pytest.fixture(scope="module", autouse=True)
def uncounted():
    """What a step costs is made up, but where a test is about it."""
    made_up = flops.Rehearsal(flops.Cost(1e6, 1e6, 2e6), 1 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "rehearse", lambda *given: made_up)
        yield


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(comparison, "rehearse", flops.rehearse)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the table of a comparison; six steps, two seeds."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    return folder, compared(folder)


def test_again_is_the_same_bit_for_bit_in_one_process_or_two(finished, tmp_path, forked):
    _, first = finished
    assert without_times(first, [0]) == without_times(compared(tmp_path / "b", seeds=1))
    assert without_times(first) == without_times(compared(tmp_path / "c", jobs=2))


def test_equal_steps_draw_equal_batches(finished):
    folder, _ = finished
    for seed in (0, 1):
        batches = [
            [
                json.loads(line)["batch"]
                for line in (folder / "runs" / f"{arm}-{seed}.metrics.jsonl")
                .read_text()
                .splitlines()
            ]
            for arm in ("onehot", "closed_form")
        ]
        assert batches[0] == batches[1] and len(set(batches[0])) == 6


@pytest.mark.usefixtures("counted")
def test_flops_charge_designer_and_meta_step(tmp_path):
    by_steps = compared(tmp_path / "steps", seeds=1)
    spent = {run["arm"]: run["flops"] for run in by_steps["runs"]}
    assert spent["closed_form"] > 1.3 * spent["onehot"] > 0
    budget = 8 * spent["onehot"]
    by_flops = compared(tmp_path / "flops", seeds=1, match="flops", amount=budget)
    steps = {run["arm"]: run["steps"] for run in by_flops["runs"]}
    assert steps["closed_form"] < steps["onehot"]
    for run in by_flops["runs"]:  # ends with the step that uses the budget up
        assert budget <= run["flops"] < budget * (1 + 2.5 / run["steps"])


@pytest.mark.usefixtures("counted")
def test_flops_count_every_batch_of_a_step(tmp_path):
    def spent(accumulate):
        recipe = shrunken(
            "demo-language",
            "value.meta_period=2",
            f"learner.accumulate={accumulate}",
            "budget.steps=2",
        )
        out = tmp_path / str(accumulate)
        return comparison.compare(recipe, arms=["onehot"], seeds=1, match="steps", out=out)["runs"][
            0
        ]["flops"]

    assert spent(3) == pytest.approx(3 * spent(1), rel=0.1)


def test_step_zero_is_always_there(finished):
    _, table = finished
    assert table["step0"].keys() == table["metrics"].keys()
    assert table["step0"]["test/nll"]["stderr"] > 0


def test_items_that_do_not_agree_decide_nothing(finished):
    _, table = finished
    result = table["paired"]["closed_form"]["test/nll"]
    low, high = result["items"]["ci95"]
    assert low <= result["difference"] <= high
    if low <= 0 <= high:
        assert result["verdict"] == "undecided"


def test_items_of_another_number_are_refused(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    path = out / "runs" / "onehot-1.items.json"
    items = json.loads(path.read_text())
    path.write_text(json.dumps({name: figures[1:] for name, figures in items.items()}))
    with pytest.raises(UserError, match=r"runs: .*scored on different numbers of items"):
        compared(out)


def test_what_was_begun_is_gone_on_with_under_a_newer_version_and_not_under_another_recipe(
    tmp_path,
):
    compared(tmp_path, arms=("onehot",), seeds=1, amount=2)
    path = tmp_path / "recipe.yaml"
    lines = path.read_text().splitlines(keepends=True)
    older = [line for line in lines if line.strip() != "on_collapse: log"]
    assert len(older) == len(lines) - 1
    path.write_text("".join(older))
    first = (tmp_path / "runs" / "onehot-0.json").stat().st_mtime_ns
    assert len(compared(tmp_path, seeds=1, amount=2)["runs"]) == 2
    assert (tmp_path / "runs" / "onehot-0.json").stat().st_mtime_ns == first
    assert path.read_text() == "".join(lines)
    with pytest.raises(UserError, match="was begun with another value") as refused:
        compared(tmp_path, arms=("closed_form", "onehot"), seeds=1, amount=3)
    assert {problem.where for problem in refused.value.problems} == {"arm", "budget.steps"}


def test_data_that_changed_between_two_commands_are_refused_with_both_hashes(tmp_path):
    """Arms that were scored on different sets must not stand in one table."""
    compared(tmp_path, arms=("onehot",), seeds=1, amount=1)
    environment = tmp_path / "environment.json"
    written = json.loads(environment.read_text())
    source = next(name for name in written["data_hashes"] if name.startswith("stream/"))
    mine, written["data_hashes"][source] = written["data_hashes"][source], "0" * 64
    environment.write_text(json.dumps(written))
    with pytest.raises(UserError) as refused:
        compared(tmp_path, seeds=1, amount=1)
    message = str(refused.value)
    assert f"data of {source}" in message and mine[:16] in message and "0" * 16 in message
    assert "--accept-changes" in message
    assert not (tmp_path / "runs" / "closed_form-0.json").exists(), "nothing was run"
    change = {"what": f"data of {source}", "before": "0" * 16, "now": mine[:16]}
    assert compared(tmp_path, seeds=1, amount=1, accept_changes=True)["changes"] == [change]
    again = compared(tmp_path, seeds=1, amount=1)  # the table still holds what was mixed
    assert again["changes"] == [change] == json.loads(environment.read_text())["changes"]
    written["data_hashes"]["evaluation"] = "0" * 64
    environment.write_text(json.dumps(written))
    with pytest.raises(UserError, match="scored before this changed: name another folder"):
        compared(tmp_path, seeds=1, amount=1, accept_changes=True)


def test_a_recipe_that_changed_is_accepted_by_name(tmp_path):
    compared(tmp_path, arms=("onehot",), seeds=1, amount=1)
    table = compared(tmp_path, arms=("onehot",), seeds=1, amount=2, accept_changes=True)
    assert table["changes"] == [{"what": "budget.steps", "before": "1", "now": "2"}]


def test_seeds_that_no_table_could_hold_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--seeds.*\n.*1000000000\n.*1 to 10000"):
        compared(tmp_path, seeds=10**9)


def test_no_best_model_is_kept_or_asked_for_in_a_comparison(tmp_path):
    """Every run's last model is measured, and its checkpoints go when it is finished."""
    keep = ("evaluate.every=1", "checkpoint.keep_best=no_such_metric", "checkpoint.every=1")
    table = compared(tmp_path, keep, arms=["onehot"], seeds=1, amount=2)
    assert [run["steps"] for run in table["runs"]] == [2]


def test_a_result_that_is_not_whole_is_named(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    whole = out / "runs" / "onehot-1.json"
    whole.write_text(whole.read_text()[:40])
    with pytest.raises(UserError, match=r"onehot-1\.json.*remove onehot-1"):
        compared(out)
    whole.unlink()
    assert without_times(compared(out)) == without_times(finished[1])


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path, monkeypatch):
    healthy = comparison.train

    def train(run):
        if run.recipe.arm == "closed_form":
            raise Fault("loss nan")
        return healthy(run)

    monkeypatch.setattr(comparison, "train", train)
    with pytest.raises(Fault, match="closed_form, seed 0: loss nan"):
        compared(tmp_path, seeds=1, amount=1)
    assert (tmp_path / "runs" / "onehot-0.json").is_file()


def steps_of(folder, arm):
    """Batches and losses by step, as the run logged them."""
    lines = (folder / "runs" / f"{arm}-0.metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"], r["batch"]) for r in map(json.loads, lines)]


@pytest.mark.parametrize(
    ("ended", "again"), [("SIGTERM", 3), ("killed", 4)], ids=["asked to stop", "killed"]
)
def test_a_run_goes_on_from_its_checkpoint(finished, tmp_path, monkeypatch, ended, again):
    """At step 3 of the second arm, checkpoints after every second step; 6 steps are a run."""
    folder, whole = finished
    append, calls = Records.append, []

    def fatal(records, record):
        append(records, record)
        calls.append(record["step"])
        if len(calls) == 9:
            if ended == "killed":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Records, "append", fatal)
    recipe = ("checkpoint.every=2", "checkpoint.seconds=0")
    with pytest.raises(Stopped if ended == "SIGTERM" else KeyboardInterrupt):
        compared(tmp_path / "again", recipe, seeds=1)
    resumed = compared(tmp_path / "again", recipe, seeds=1)
    assert len(calls) == 9 + again
    assert without_times(resumed) == without_times(whole, [0])
    for arm in ("onehot", "closed_form"):
        assert steps_of(tmp_path / "again", arm) == steps_of(folder, arm)
    assert not [*(tmp_path / "again" / "runs").glob("*.checkpoints")]


def test_source_weights_and_sft(tmp_path):
    table = compared(tmp_path, arms=("onehot", "source_weights", "feedback_sft"), seeds=1, amount=3)
    digests = {run["arm"]: run["stream_digest"] for run in table["runs"]}
    assert digests["onehot"] == digests["source_weights"] != digests["feedback_sft"]


def test_the_table_in_a_terminal_cuts_no_figure():
    """Of many metrics the leading ones are shown whole, and the others are named."""
    metrics = {f"test/a_long_name_{i}": {"higher_is_better": True} for i in range(7)}
    scores = {name: {"mean": 0.3016, "std": 0.0123, "n": 3} for name in metrics}
    pair = {"difference": 0.0687, "ci95": [0.0372, 0.1003], "p_holm": 0.02, "verdict": "better"}
    table = {
        "budget": 150,
        "match": "steps",
        "metrics": metrics,
        "step0": {name: {"value": 0.2178} for name in metrics},
        "runs": [
            {"arm": arm, "seed": 0, "seconds": 65.0} for arm in ("plain", "fixed_random_direction")
        ],
        "summary": {arm: scores for arm in ("plain", "fixed_random_direction")},
        "paired": {"fixed_random_direction": dict.fromkeys(metrics, pair)},
    }
    for width in (80, 120, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(comparison_table(table, width))
        said = console.export_text()
        assert "…" not in said and "[+0.0372," in said and "fixed_random_direction" in said
        assert all(f"name_{i}" in said or f"name {i}" in said for i in range(7))


def test_a_second_command_on_a_folder_is_refused_by_number(tmp_path):
    with (
        writing(tmp_path),
        pytest.raises(UserError, match=rf"another command \(process {os.getpid()}\) is writing"),
    ):
        compared(tmp_path, seeds=1, amount=1)


def test_arms_that_saw_different_streams_are_not_held_against_each_other(tmp_path):
    runs = [{"seed": 0, "stream_digest": digest} for digest in ("one", "another")]
    with pytest.raises(UserError, match=r"seed: the arms of this seed did not see the same stream"):
        comparison._check_streams(runs, "steps", tmp_path)
    comparison._check_streams([runs[0], {**runs[1], "seed": 1}], "steps", tmp_path)


def test_a_run_that_left_a_batch_out_drew_one_more_and_is_compared(tmp_path):
    runs = [
        {"seed": 0, "stream_digest": digest, "batches": batches}
        for digest, batches in (("one", 4), ("another", 5))
    ]
    comparison._check_streams(runs, "steps", tmp_path)
    runs[1]["batches"] = 4
    with pytest.raises(UserError, match="did not see the same stream"):
        comparison._check_streams(runs, "steps", tmp_path)


def test_a_disk_that_is_too_small_is_told_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(UserError, match="disk"):
        compared(tmp_path, seeds=1, amount=1)
    assert not [*(tmp_path / "runs").glob("*.metrics.jsonl")]
