"""A run's state as one object: what comes after it is the same, bit for bit."""

import copy

import pytest
import torch

from tests.reliability.runs import language_recipe
from vpretrain.language import Language
from vpretrain.method.feedback import MultiTaskFeedback
from vpretrain.run.run import Run
from vpretrain.system import distributed


def begun(steps, *overrides):
    recipe = language_recipe("arm=closed_form", "budget.steps=4", *overrides)
    modality = Language()
    run = Run(recipe, modality.build(recipe, modality.load(recipe)), step0={})
    run.start()
    take(run, steps)
    return run


def take(run, steps):
    for _ in range(steps):
        batch = run.next_batch()
        run.record(batch, run.step(batch))
        run.advance(batch)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.parts.learner.model.parameters()])


def test_all_processes_end_by_the_clock_of_the_first(monkeypatch):
    run = begun(0, "budget.seconds=1000")
    assert not run.agree_on_end()
    monkeypatch.setattr(distributed, "broadcast_object", lambda own: 1001.0)
    assert run.agree_on_end() and run.state.spent.seconds == 1001.0


def test_all_processes_take_the_rate_of_the_firsts_clock(monkeypatch):
    run, rates = begun(0, "budget.seconds=1000"), []
    monkeypatch.setattr(distributed, "broadcast_object", lambda own: 250.0)
    monkeypatch.setattr(run, "_step", lambda drawn, rate, progress: rates.append((rate, progress)))
    for wait in (10.0, 500.0):
        batch = run.next_batch()
        run.state.spent.seconds = wait
        run.take(batch)
    assert rates[0] == rates[1] and rates[0][1] == pytest.approx(0.25, abs=0.02)


def test_a_state_is_where_the_steps_that_follow_are_the_same():
    whole = begun(2)
    state = copy.deepcopy(whole.state.state_dict())
    take(whole, 2)
    resumed = begun(0)
    resumed.state.load_state_dict(state)
    assert resumed.state.spent.steps == 2
    take(resumed, 2)
    assert torch.equal(weights(whole), weights(resumed))
    assert resumed.state.digest == whole.state.digest


def test_a_rewind_goes_on_with_the_data_that_follow_and_forgets_nothing_that_was_used():
    run = begun(1, "value.meta_batch={batch_size: 2, window_tokens: 40}", "value.meta_period=1")
    state = copy.deepcopy(run.state.state_dict())
    take(run, 1)
    run.state.best = 0.4
    parts, records, seconds = run.parts, run.state.records, run.state.spent.seconds
    stream, meta = (copy.deepcopy(each.state_dict()) for each in (parts.stream, parts.meta_batches))
    run.state.rewind(state)
    assert run.state.spent.steps == 1, "the learner is where it was"
    assert parts.stream.state_dict() == stream and run.state.records == records
    assert parts.meta_batches.state_dict() == meta != state["meta_batches"]
    assert run.state.best == 0.4, "that model is kept on disk"
    assert run.state.spent.seconds == seconds
    again = begun(0)
    assert not again.state.rewound
    again.state.load_state_dict(run.state.state_dict())
    assert again.state.rewound, "once is once, whether or not the run was stopped in between"


def test_feedback_looks_at_the_untouched_learner_once_before_the_first_step(monkeypatch):
    seen = []
    monkeypatch.setattr(MultiTaskFeedback, "prepare", lambda self, learner: seen.append(learner))
    run = begun(1, "value.start_step=2", "value.settle_steps=3")
    assert seen == [run.parts.learner]
    begun(1, "arm=onehot")
    assert len(seen) == 1, "an arm without feedback asks nothing of it"
