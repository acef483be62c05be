"""A search over a recipe: what it refuses, that it goes on where it stopped, prunes, and writes
recipes that load.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vpretrain.config.recipe import load
from vpretrain.config.sweep import Range
from vpretrain.run.modalities import SCHEMAS
from vpretrain.studies import sweep as sweeps
from vpretrain.studies.sweep_plan import Swept
from vpretrain.system.errors import Stopped, UserError

REPOSITORY = Path(__file__).parents[2]
RECIPE = """\
extends: demo-language
arm: token_weights
budget: {steps: 3}
data:
  window_tokens: 32
  batch_size: 2
  stream:
    - {name: problems, rows: {kind: word_problems, rows: 40, noise_share: 0.5}}
  feedback: {rows: {kind: word_problems, split: feedback, rows: 16}, batch_size: 4}
  evaluation:
    dev: {kind: word_problems, split: dev, rows: 8}
    test: {kind: word_problems, split: test, rows: 8}
learner:
  model: null
  prepare: null
  config: {model_type: llama, vocab_size: 96, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
    num_attention_heads: 2, num_key_value_heads: 2}
  aligned_blocks: 1
value: {settle_steps: 1, meta_period: 2}
evaluate: {every: 1, split: dev, also: [test], answer: null}
"""
SPACE = """\
sweep:
  keys:
    learner.learning_rate: {low: 1e-4, high: 1e-1, log: true}
    designer.tilt: [0.4, 1.0]
    value.meta_period: {low: 1, high: 3}
  objectives: [dev/nll]
  budget: {steps: 2}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(space=SPACE, *overrides):
    with open("swept.yaml", "w") as file:
        file.write(RECIPE + space)
    return sweeps.Plan.read("swept.yaml", list(overrides))


def parameters(out):
    return [trial.params for trial in sweeps._study(out).get_trials() if trial.state.name != "FAIL"]


def test_a_budget_that_no_trial_would_have_is_no_key(here):
    keys = "sweep: {keys: {budget.steps: [2, 4]}, objectives: [dev/nll], budget: {steps: 2}}"
    with pytest.raises(UserError, match=r"sweep\.keys\.budget\.steps"):
        plan(keys)


def test_the_best_trial_is_a_recipe_with_its_values_and_its_own_budget(here):
    result = sweeps.sweep(plan(), trials=3, out=here / "out")
    assert result == json.loads((here / "out" / "sweep.json").read_text()) and result["trials"] == 3
    best = load(here / "out" / "best.yaml", schemas=SCHEMAS)
    assert best.learner.learning_rate == result["best"]["parameters"]["learner.learning_rate"]
    assert best.designer.tilt == result["best"]["parameters"]["designer.tilt"]
    assert best.budget.steps == 3  # a trial had 2
    scores = [trial.value for trial in sweeps._study(here / "out").get_trials()]
    assert result["best"]["values"]["dev/nll"] == min(scores) and result["front"] == []
    assert 1e-4 <= best.learner.learning_rate <= 1e-1 and best.value.meta_period in (1, 2, 3)
    assert load(here / "out" / "recipe.yaml", schemas=Swept()).sweep == plan().sweep


def test_trials_may_have_a_budget_in_flops(here):
    space = SPACE.replace("budget: {steps: 2}", "budget: {flops: 5.0e+7}")
    result = sweeps.sweep(plan(space), trials=2, out=here / "out")
    assert (result["trials"], result["failed"]) == (2, 0)


def test_a_search_that_was_stopped_finds_what_it_would_have_found(here, monkeypatch):
    sweeps.sweep(plan(), trials=4, out=here / "whole")
    ours = sweeps.train
    calls = []

    def once_killed(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ours(*given, **named)

    monkeypatch.setattr(sweeps, "train", once_killed)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(plan(), trials=4, out=here / "stopped")
    result = sweeps.sweep(plan(), trials=4, out=here / "stopped")
    assert result["trials"] == 4 and result["failed"] == 0
    assert parameters(here / "stopped") == parameters(here / "whole")
    calls.clear()
    calls.extend([1, 1])
    assert (
        sweeps.sweep(plan(), trials=4, out=here / "stopped") == result and len(calls) == 2
    )  # nothing was run


def test_combinations_of_lists_are_tried_once_each_also_after_a_kill(here, monkeypatch):
    rates, periods = [1e-3, 1e-2], [1, 2]
    space = f"""sweep:
  keys: {{learner.learning_rate: {rates}, value.meta_period: {periods}}}
  objectives: [dev/nll]
  budget: {{steps: 1}}
"""
    ours, killed = sweeps.train, []

    def once_killed(*given, **named):
        if (
            len(sweeps._study(here / "out").get_trials(states=[sweeps.TrialState.COMPLETE])) == 2
            and not killed
        ):
            killed.append(True)
            raise KeyboardInterrupt
        return ours(*given, **named)

    monkeypatch.setattr(sweeps, "train", once_killed)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(plan(space), trials=20, out=here / "out")
    result = sweeps.sweep(plan(space), trials=20, out=here / "out")
    tried = [
        (json.loads(each["learner.learning_rate"]), json.loads(each["value.meta_period"]))
        for each in parameters(here / "out")
    ]
    assert result["trials"] == 4 and killed
    assert sorted(tried) == [(rate, period) for rate in rates for period in periods]


@pytest.mark.parametrize(
    ("space", "allowed"),
    [
        ("{low: 0, high: 1, step: 0.25}", {0, 0.25, 0.5, 0.75, 1}),
        ("{low: 1, high: 4, step: 1.5}", {1, 2.5, 4}),
        ("{low: 1, high: 5, step: 2}", {1, 3, 5}),
    ],
)
def test_a_step_is_kept_to(space, allowed):
    """Between whole ends too, where Optuna's integers would round it, down to a step of 0."""
    study, space = sweeps.optuna.create_study(), Range(**yaml.safe_load(space))
    result = {sweeps._suggest(study.ask(), "designer.tilt", space) for _ in range(40)}
    assert result <= allowed and len(result) > 1
    assert isinstance(result.pop(), int) == isinstance(space.step, int)


def test_kinds_of_designers_can_be_searched(here):
    searched = plan(
        SPACE.replace("designer.tilt: [0.4, 1.0]", "designer.kind: [token_weights, closed_form]")
    )
    kinds = {
        searched.at({"designer.kind": kind}).designer.kind
        for kind in ("token_weights", "closed_form")
    }
    assert kinds == {"token_weights", "closed_form"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "memory ran out: lower"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out: lower"),
    ],
)
def test_a_trial_that_memory_is_too_small_for_has_failed_and_the_others_run(
    here, monkeypatch, error, reason
):
    ours, calls = sweeps.train, []

    def once_too_large(run):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return ours(run)

    monkeypatch.setattr(sweeps, "train", once_too_large)
    result = sweeps.sweep(plan(), trials=2, out=here / "out")
    assert (result["trials"], result["failed"]) == (2, 1)
    failed = sweeps._study(here / "out").get_trials()[0]
    assert failed.user_attrs["failed"].startswith(reason)


@pytest.mark.parametrize(("error", "trials"), [(KeyError("a bug"), 2), (Stopped("SIGTERM"), 1)])
def test_a_trial_with_a_bug_is_not_taken_up_again_and_one_that_was_stopped_is(
    here, monkeypatch, error, trials
):
    def broken(run):
        raise error

    for _ in range(2):
        monkeypatch.setattr(sweeps, "train", broken)
        with pytest.raises(type(error)):
            sweeps.sweep(plan(), trials=3, out=here / "out")
    states = sweeps._study(here / "out").get_trials()
    assert len({str(trial.params) for trial in states}) == trials


def test_data_that_changed_under_a_search_are_refused_and_named_where_they_are_accepted(here):
    out = here / "out"
    sweeps.sweep(plan(), trials=1, out=out)
    environment = json.loads((out / "environment.json").read_text())
    mine = environment["data_hashes"]["stream/problems"]
    environment["data_hashes"]["stream/problems"] = "0" * 64
    (out / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(UserError, match=f"(?s)data of stream/problems.*{mine[:16]}.*{'0' * 16}"):
        sweeps.sweep(plan(), trials=1, out=out)
    result = sweeps.sweep(plan(), trials=1, out=out, accept_changes=True)
    change = {"what": "data of stream/problems", "before": "0" * 16, "now": mine[:16]}
    assert result["changes"] == [change]
    environment["data_hashes"] = {"evaluation": "0" * 64}
    (out / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(UserError, match="scored before this changed"):
        sweeps.sweep(plan(), trials=1, out=out, accept_changes=True)


def test_several_objectives_leave_a_front(here):
    result = sweeps.sweep(
        plan(SPACE.replace("[dev/nll]", "[dev/nll, test/nll]"), "evaluate.every=0"),
        trials=3,
        out=here / "out",
    )
    assert (here / "out" / "front.png").read_bytes().startswith(b"\x89PNG")
    every = [trial.values for trial in sweeps._study(here / "out").get_trials()]
    front = [tuple(entry["values"].values()) for entry in result["front"]]
    assert front and result["best"]["number"] == result["front"][0]["number"]
    for ours in front:
        assert not any(
            all(a <= b for a, b in zip(other, ours, strict=True)) and tuple(other) != ours
            for other in every
        )
    for entry in result["front"]:
        assert (
            load(entry["recipe"], schemas=SCHEMAS).designer.tilt
            == entry["parameters"]["designer.tilt"]
        )


def test_hopeless_trials_are_pruned(here):
    """After four good trials, those at a rate that only harms are given up at their first
    evaluation.
    """
    space = SPACE.replace("{low: 1e-4, high: 1e-1, log: true}", "[1e-3, 3.0]") + "  prune: true\n"
    searched = plan(space, "budget.steps=2", "learner.warmup_fraction=0")
    out = here / "out"
    sweeps.sweep(searched, trials=1, out=out)
    study = sweeps._study(out)
    for rate in (1e-3, 1e-3, 1e-3, 1e-3, 3.0):
        study.enqueue_trial(
            {
                "learner.learning_rate": json.dumps(rate),
                "designer.tilt": "0.4",
                "value.meta_period": 2,
            }
        )
    result = sweeps.sweep(searched, trials=6, out=out)
    assert result["pruned"] >= 1 and result["best"]["parameters"]["learner.learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("", ["sweep", "missing"]),
        (
            SPACE.replace("designer.tilt", "designer.tillt"),
            ["sweep.keys.designer.tillt", "did you mean tilt"],
        ),
        (SPACE.replace("[0.4, 1.0]", "[0.4, -1.0]"), ["sweep.keys.designer.tilt", "-1.0"]),
        (SPACE.replace("low: 1e-4", "low: 1.0"), ["learner.learning_rate", "high has to be more"]),
        (SPACE.replace("low: 1e-4", "low: 0"), ["low above 0"]),
        (
            SPACE.replace("budget: {steps: 2}", "bugdet: {steps: 2}"),
            ["swept.yaml", "did you mean budget"],
        ),
        (
            SPACE.replace("[dev/nll]", "[dev/nll, test/nll]") + "  prune: true\n",
            ["several objectives"],
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_at_once(space, said, here):
    with pytest.raises(UserError) as refused:
        plan(space)
    assert all(word in str(refused.value) for word in said), str(refused.value)


def test_what_is_only_known_once_the_model_is_there_is_said_too(here):
    with pytest.raises(UserError, match="dev/nll"):
        sweeps.sweep(plan(SPACE.replace("dev/nll", "dev/loss")), trials=1, out=here / "a")
    with pytest.raises(UserError, match=r"evaluate\.every"):
        plan(SPACE + "  prune: true\n", "evaluate.every=0")
    sweeps.sweep(plan(), trials=1, out=here / "b")
    with pytest.raises(UserError, match="begun with another value") as refused:
        sweeps.sweep(plan(SPACE.replace("1.0]", "1.5]"), "seed=7"), trials=1, out=here / "b")
    assert {each.where for each in refused.value.problems} == {"seed", "sweep.keys.designer.tilt.1"}
    sweeps.sweep(plan(SPACE, "description=another"), trials=1, out=here / "b")


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "vpretrain.studies.sweep")
    with pytest.raises(UserError, match=r"pip install 'vpretrain\[sweep\]'"):
        importlib.import_module("vpretrain.studies.sweep")


@pytest.mark.slow
def test_several_processes_share_a_study_and_a_killed_command_goes_on(here):
    plan()
    command = [
        sys.executable,
        "-m",
        "vpretrain",
        "sweep",
        "swept.yaml",
        "--out",
        "out",
        "--trials",
        "6",
        "--jobs",
        "2",
        "--json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=environment, process_group=0, stderr=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stderr is not None
        said = next(
            line for line in killed.stderr if "trial 1:" in line or "trial 0:" in line
        )  # the other one still runs
        os.killpg(killed.pid, signal.SIGKILL)
    assert said.startswith("1 of 6")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"] == 6


def test_the_papers_search_holds_together():
    """Every end of every range makes a recipe; the pictures are not read for that."""
    result = sweeps.Plan.read(str(REPOSITORY / "examples" / "sweeps" / "vision-paper.yaml"), [])
    assert result.recipe.evaluate.split == "dev" and set(result.sweep.objectives) == {
        "dev/miou",
        "dev/depth_rmse",
    }
    at = result.at({"data.feedback.tasks": {"segmentation": 4, "depth": 1}, "value.meta_period": 2})
    assert at.data.feedback.tasks == {"segmentation": 4, "depth": 1} and at.budget.steps == 2000
    for part, probed, scored in zip(
        at.data.feedback.sets, at.data.evaluation["train"], at.data.evaluation["dev"], strict=True
    ):
        for used in (part.pictures, probed):  # a run whose dev pictures are used does not start
            assert (used.kind, used.split) == (scored.kind, scored.split)
            assert used.count is not None and used.skip + used.count <= scored.skip
        assert part.train + part.meta <= part.pictures.count
    assert "designer.meta_images" not in result.sweep.keys, "it is cut off at the meta batch"
    for size in result.sweep.keys["data.meta_batch_size"]:
        assert result.at({"data.meta_batch_size": size}).data.meta_batch_size == size


def test_a_search_whose_files_are_damaged_is_named(here):
    sweeps.sweep(plan(), trials=1, out=here / "out")
    for broken, content in (
        ("sweep.db", "no database" * 500),
        ("sweep.db", ""),
        ("step0.json", "[]"),
    ):
        (here / "out" / broken).write_text(content)
        with pytest.raises(UserError, match=broken.replace(".", r"\.")):
            sweeps.sweep(plan(), trials=2, out=here / "out")
