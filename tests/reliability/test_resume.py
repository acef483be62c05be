"""Whatever ends a run, the next start goes on as if nothing had happened, bit for bit."""

import json
import os
import random
import shutil
import signal
import sys

import pytest
import torch

from tests.designers import arms_of, of_every_kind
from tests.reliability.runs import build, language_recipe, vision_recipe, weights_hash
from vpretrain.language import Language
from vpretrain.language.feedback.checkers import CHECKERS
from vpretrain.language.steering.arms import ARMS as LANGUAGE_ARMS
from vpretrain.models.trainable_state import load_trained_state
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.launch import FINISHED, train_one
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import Fault, Stopped, UserError
from vpretrain.vision import Vision
from vpretrain.vision.steering.arms import ARMS as VISION_ARMS

TIMES = ("seconds", "tokens_per_second")


def figures(history):
    """Records without what a clock says."""
    return [
        {key: v for key, v in record.items() if not key.startswith(TIMES)} for record in history
    ]


def gone_on_with(recipe, materials, folder, at):
    """A run that ends after ``at`` steps, and another process's worth of fresh parts that goes on
    from its checkpoint.
    """
    checkpoints = CheckpointManager(folder, every=at, keep_last=9)
    whole_parts = build(recipe, materials)
    whole = train(Run(recipe, whole_parts, step0={}, checkpoints=checkpoints))
    for step in checkpoints.steps():
        if step > at:
            shutil.rmtree(checkpoints.path(step))
    step, state = checkpoints.newest()
    assert step == at
    random.seed(99)
    torch.manual_seed(99)  # what a new process would have drawn
    parts = build(recipe, materials)
    rest = train(Run(recipe, parts, checkpoints=None, resume=state))
    assert figures(rest.history) == figures(whole.history)[at:]
    assert rest.stream_digest == whole.stream_digest
    assert {name: score.value for name, score in rest.final.items()} == {
        n: s.value for n, s in whole.final.items()
    }
    return weights_hash(parts), weights_hash(whole_parts)


@pytest.fixture(scope="module")
def words():
    return Language().load(language_recipe())


@pytest.fixture(scope="module")
def pictures():
    return {kind: Vision().load(vision_recipe(kind=kind)) for kind in ("dino", "ijepa")}


@pytest.mark.parametrize("arm", arms_of(LANGUAGE_ARMS))
def test_language_goes_on_bit_for_bit(words, arm, tmp_path):
    """Step 4 is between two meta steps: the direction that was taken at step 3 is still in use."""
    recipe = language_recipe(f"arm={arm}", *of_every_kind(LANGUAGE_ARMS, replay=2, updates=2))
    resumed, uninterrupted = gone_on_with(recipe, words, tmp_path / "checkpoints", at=4)
    assert resumed == uninterrupted


def test_a_checkpoint_of_adapters_is_without_their_base(words, tmp_path):
    recipe = language_recipe("arm=token_weights", "learner.lora={r: 2}")
    resumed, uninterrupted = gone_on_with(recipe, words, tmp_path / "checkpoints", at=4)
    assert resumed == uninterrupted
    _, state = CheckpointManager(tmp_path / "checkpoints").newest()
    parts = build(recipe, words)
    names = {name for name, p in parts.learner.model.named_parameters() if p.requires_grad}
    assert set(state["model"]) == names and all(".lora_" in name for name in names)
    with pytest.raises(RuntimeError, match="missing"):
        load_trained_state(parts.learner.model, {})


@pytest.mark.parametrize("modality", ["language", "vision"])
def test_batches_that_are_drawn_ahead_are_the_same(modality, words, pictures, tmp_path):
    """Checkpoints of a run that draws ahead know nothing of what waits, and one that does not goes
    on from them.
    """
    accumulate = "learner.accumulate=2"
    if modality == "language":
        recipe, materials = (
            language_recipe("arm=token_weights", accumulate, "budget.steps=6"),
            words,
        )
    else:
        recipe, materials = (
            vision_recipe("arm=ascent", accumulate, "budget.steps=6"),
            pictures["dino"],
        )
    plain, ahead = build(recipe, materials), build(recipe, materials)
    checkpoints = CheckpointManager(tmp_path / "ahead", every=4, keep_last=9)
    expected = train(Run(recipe, plain, step0={}, prefetch=False))
    result = train(Run(recipe, ahead, step0={}, checkpoints=checkpoints, prefetch=True))
    assert (
        figures(result.history) == figures(expected.history)
        and result.stream_digest == expected.stream_digest
    )
    assert weights_hash(ahead) == weights_hash(plain)
    assert next(ahead.stream).digest() == next(plain.stream).digest()
    shutil.rmtree(checkpoints.path(6))
    for goes_ahead in (False, True):
        parts = build(recipe, materials)
        assert (
            train(
                Run(recipe, parts, resume=checkpoints.newest()[1], prefetch=goes_ahead)
            ).stream_digest
            == expected.stream_digest
        )
        assert weights_hash(parts) == weights_hash(plain)


@pytest.mark.parametrize("arm", arms_of(VISION_ARMS, "dino"))
def test_dino_goes_on_bit_for_bit(pictures, arm, tmp_path):
    one_sided = ["value.estimator=one_sided_difference"] if arm == "view_weights" else []
    recipe = vision_recipe(f"arm={arm}", "budget.steps=5", "value.meta_period=2", *one_sided)
    resumed, uninterrupted = gone_on_with(recipe, pictures["dino"], tmp_path / "checkpoints", at=3)
    assert resumed == uninterrupted


@pytest.mark.parametrize("arm", ["plain", "ascent", "random_masks", "patch_weights"])
def test_ijepa_goes_on_bit_for_bit(pictures, arm, tmp_path):
    assert arm in arms_of(VISION_ARMS, "ijepa")
    recipe = vision_recipe(f"arm={arm}", "budget.steps=5", "value.meta_period=2", kind="ijepa")
    resumed, uninterrupted = gone_on_with(recipe, pictures["ijepa"], tmp_path / "checkpoints", at=3)
    assert resumed == uninterrupted


def test_a_signal_saves_stops_and_the_same_command_goes_on(words, tmp_path):
    recipe = language_recipe("arm=document_weights", "checkpoint.every=2")

    def interrupt(record, fraction):
        if record["step"] == 3 and fraction != 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGTERM after step 3"):
        train_one(recipe, tmp_path / "a", interrupt)
    said = []
    resumed = train_one(recipe, tmp_path / "a", lambda record, fraction: None, notify=said.append)
    assert said == ["going on after step 3"]
    whole = train_one(recipe, tmp_path / "b", lambda record, fraction: None)
    assert resumed["final"] == whole["final"] and resumed["step0"] == whole["step0"]
    texts = [(tmp_path / run / "metrics.jsonl").read_text() for run in "ab"]
    lines = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert figures(lines[0]) == figures(lines[1]) and [line["step"] for line in lines[0]] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a/model" / name).read_bytes() == (
            tmp_path / "b/model" / name
        ).read_bytes()


def test_a_finished_run_says_so_and_does_nothing(words, tmp_path):
    recipe = language_recipe("arm=onehot", "budget.steps=2")
    first = train_one(recipe, tmp_path, lambda record, fraction: None)
    said, steps = [], []
    again = train_one(
        recipe, tmp_path, lambda record, fraction: steps.append(record), notify=said.append
    )
    assert again == first and said == [FINISHED] and not steps


def test_a_changed_recipe_is_refused_with_its_keys_and_can_be_accepted(words, tmp_path):
    train_one(
        language_recipe("arm=onehot", "budget.steps=2"), tmp_path, lambda record, fraction: None
    )
    longer = language_recipe("arm=onehot", "budget.steps=4", "learner.learning_rate=3e-3")
    with pytest.raises(UserError) as error:
        train_one(longer, tmp_path, lambda record, fraction: None)
    assert {problem.where for problem in error.value.problems} == {
        "budget.steps",
        "learner.learning_rate",
    }
    assert "--accept-changes" in str(error.value)
    steps = []
    train_one(
        longer, tmp_path, lambda record, fraction: steps.append(record["step"]), accept_changes=True
    )
    assert steps == [3, 4]


def test_what_is_not_trained_may_change(words, tmp_path):
    train_one(
        language_recipe("arm=onehot", "budget.steps=2"), tmp_path, lambda record, fraction: None
    )
    said = []
    other = language_recipe(
        "arm=onehot", "budget.steps=2", "checkpoint.keep_last=5", "learner.shard=true"
    )
    train_one(other, tmp_path, lambda record, fraction: None, notify=said.append)
    assert said == [FINISHED]


class Poisoned:
    """A stream on which the loss is not finite at the given draws."""

    def __init__(self, stream, learner, bad):
        self.stream, self.learner, self.bad, self.drawn = stream, learner, bad, 0
        self.healthy = learner.loss

    def __iter__(self):
        return self

    def __next__(self):
        self.drawn += 1
        bad = self.drawn in self.bad
        self.learner.loss = (
            (lambda context, task: self.healthy(context, task) * float("nan"))
            if bad
            else self.healthy
        )
        return next(self.stream)

    def state_dict(self):
        return self.stream.state_dict()

    def load_state_dict(self, state):
        self.stream.load_state_dict(state)


def poisoned(recipe, words, bad):
    parts = build(recipe, words)
    object.__setattr__(parts, "stream", Poisoned(parts.stream, parts.learner, bad))
    return parts


def test_a_batch_that_is_not_finite_is_left_out_counted_and_named(words):
    recipe = language_recipe("arm=onehot", "value.settle_steps=0", "budget.steps=4")
    result = train(Run(recipe, poisoned(recipe, words, {2}), step0={}))
    assert [record["step"] for record in result.history] == [1, 1, 2, 3, 4]
    assert "not both finite" in result.history[1]["skipped"] and result.spent.steps == 4
    longer = language_recipe("arm=onehot", "value.settle_steps=0", "budget.steps=5")
    whole = train(Run(longer, build(longer, words), step0={}))
    assert (result.batches, result.stream_digest) == (5, whole.stream_digest)


@pytest.mark.parametrize("arm", ["token_weights", "ascent"])
@pytest.mark.parametrize("burn_in", [0, 2])
def test_feedback_that_is_not_finite_costs_one_batch(arm, burn_in, words):
    recipe = language_recipe(
        f"arm={arm}", f"value.settle_steps={burn_in}", "value.meta_period=2", "budget.steps=4"
    )
    parts = build(recipe, words)
    healthy, calls = parts.feedback.gradients, 0

    def gradients(learner):
        nonlocal calls
        calls += 1
        factor = float("nan") if calls == 1 + (burn_in == 0) else 1.0
        return [{name: factor * g for name, g in each.items()} for each in healthy(learner)]

    parts.feedback.gradients = gradients
    result = train(Run(recipe, parts, step0={}))
    assert sum("skipped" in record for record in result.history) == 1 and result.spent.steps == 4
    network = getattr(parts.designer, "network", torch.nn.Module())
    assert all(p.isfinite().all() for p in network.parameters())


def test_too_many_in_a_row_go_back_to_the_checkpoint_once_and_then_stop(words, tmp_path):
    recipe = language_recipe(
        "arm=onehot", "value.settle_steps=0", "budget.steps=6", "faults.max_skips=1"
    )
    checkpoints = CheckpointManager(tmp_path / "checkpoints", every=2)
    result = train(Run(recipe, poisoned(recipe, words, {4, 5}), step0={}, checkpoints=checkpoints))
    assert [record["step"] for record in result.history] == [1, 2, 3, 3, 3, 3, 4, 5, 6]
    with pytest.raises(Fault, match="2 batches in a row"):
        train(
            Run(
                recipe,
                poisoned(recipe, words, {4, 5, 6, 7}),
                step0={},
                checkpoints=CheckpointManager(tmp_path / "others", every=2),
            )
        )
    with pytest.raises(Fault, match="2 batches in a row"):
        train(Run(recipe, poisoned(recipe, words, {2, 3}), step0={}))


def test_batches_that_are_left_out_while_settling_count_as_in_a_row_only_if_they_are(words):
    recipe = language_recipe(
        "arm=onehot", "value.settle_steps=6", "budget.steps=2", "faults.max_skips=1"
    )
    result = train(Run(recipe, poisoned(recipe, words, {1, 3, 5}), step0={}))
    assert sum("skipped" in record for record in result.history) == 3
    with pytest.raises(Fault, match="2 batches in a row"):
        train(Run(recipe, poisoned(recipe, words, {2, 3}), step0={}))


def flaky_recipe(monkeypatch, failing):
    """A reward whose checker leaves at these of its calls, counted from 1."""
    calls = 0

    def checker(row, completion):
        nonlocal calls
        calls += 1
        return sys.exit(0) if calls in failing else len(completion) % 3

    monkeypatch.setitem(CHECKERS, "flaky", lambda pattern: checker)
    earn = "{kind: reward, rows: {kind: word_problems, split: feedback, rows: 16}, checker: flaky, batch_size: 2, "
    return language_recipe(
        f"data.feedback={{tasks: {{earn: {earn} samples: 4, new_tokens: 2}}}}}}",
        "value.settle_steps=0",
        "value.meta_period=1",
        "faults.max_skips=1",
        "budget.steps=4",
    )


def test_a_checker_that_fails_costs_one_batch_and_too_many_end_the_run(monkeypatch):
    failing = [20]
    recipe = flaky_recipe(monkeypatch, failing)
    materials = Language().load(recipe)
    parts = build(recipe, materials)
    history = train(Run(recipe, parts, step0={})).history
    (skipped,) = [record["skipped"] for record in history if "skipped" in record]
    assert "earn.checker" in skipped and "SystemExit(0)" in skipped and "earn:" in skipped
    failing += range(999)
    with pytest.raises(Fault, match="2 batches in a row"):
        train(Run(recipe, build(recipe, materials), step0={}))


def test_a_checker_that_fails_while_a_step_is_counted_does_not_end_the_run(monkeypatch, tmp_path):
    """Before step 1 the FLOPs of a step are counted, on batches that the run draws again."""
    recipe = flaky_recipe(monkeypatch, [1, 12])
    assert train_one(recipe, tmp_path, lambda record, fraction: None)["steps"] == 4
    assert "skipped" not in (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(Fault, match=r"earn\.checker"):
        train_one(
            flaky_recipe(monkeypatch, range(999)), tmp_path / "b", lambda record, fraction: None
        )


def test_the_best_learner_is_kept_as_a_model_folder(words, tmp_path):
    recipe = language_recipe(
        "arm=onehot", "evaluate.every=1", "checkpoint.keep_best=test/nll", "budget.steps=4"
    )
    checkpoints = CheckpointManager(tmp_path)
    result = train(Run(recipe, build(recipe, words), step0={}, checkpoints=checkpoints))
    best = json.loads((tmp_path / "best/scores.json").read_text())["test/nll"]
    assert best == min(record["test/nll"] for record in result.history)
    assert (tmp_path / "best/config.json").is_file()
    _, state = checkpoints.newest()
    other = language_recipe(
        "arm=onehot", "evaluate.every=1", "checkpoint.keep_best=test/pass@1", "budget.steps=5"
    )
    run = Run(other, build(other, words), checkpoints=checkpoints, resume=state)
    kept = train(run).history[-1]["test/nll"]
    assert json.loads((tmp_path / "best/scores.json").read_text())["test/nll"] == kept, (
        "the best loss so far says nothing of the share that is solved"
    )
    with pytest.raises(UserError, match="test/pass@1"):
        bad = language_recipe(
            "arm=onehot", "evaluate.every=1", "checkpoint.keep_best=loss", "budget.steps=1"
        )
        train(Run(bad, build(bad, words), step0={}, checkpoints=checkpoints))


def test_step_0_is_measured_as_the_end_is_where_a_resume_changes_the_evaluation(tmp_path):
    def gone_on(*overrides):
        recipe = language_recipe("arm=onehot", *overrides)
        told = []
        result = train_one(
            recipe, tmp_path, lambda *given: None, accept_changes=True, notify=told.append
        )
        return recipe, result, told

    gone_on("budget.steps=1")
    recipe, result, told = gone_on("budget.steps=2", "evaluate.split=dev")
    untouched = build(recipe, Language().load(recipe)).evaluate()
    assert result["step0"] == {name: score.value for name, score in untouched.items()}
    assert result["step0"].keys() == result["final"].keys() and "step 0" in " ".join(told)
    assert gone_on("budget.steps=2", "evaluate.split=dev")[1:] == (
        result,
        [FINISHED],
    )
