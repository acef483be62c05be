"""When the designer learns, and whose task the learner is given."""

import pytest
import torch

from tests.method.toy import Context, Regression, Truth, exact, pairs
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.guards import Collapse, Guard
from vpretrain.method.meta_step import MetaStep
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system.errors import NonFinite


class Once(Truth):
    """Counts how often it is asked."""

    asked = 0

    def gradients(self, learner):
        self.asked += 1
        return super().gradients(learner)


def meta_step(*, period=3, start=0, guard=0, batches=None, feedback=None):
    learner, designer = Regression(), exact()
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=0.05)
    return MetaStep(
        learner,
        designer,
        feedback or Once(),
        ValueEstimator(learner, Alignment("dot"), ESTIMATORS["double_backward"]),
        optimizer,
        period=period,
        start=start,
        preconditioner_floor=0.1,
        guard=Guard(guard),
        collapse=Collapse(0, {}),
        batches=batches,
    )


CONTEXT = Context(*pairs(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("start", "due"), [(0, [0, 3, 6]), (2, [2, 5]), (9, [])])
def test_it_is_due_every_period_from_its_start(start, due):
    meta = meta_step(start=start)
    assert [step for step in range(8) if meta.due(step)] == due


def test_before_its_start_the_task_is_the_baselines():
    meta = meta_step(start=2)
    meta(CONTEXT, meta.value_estimator, 0.0)
    tasks = [meta.task(CONTEXT, meta.value_estimator, step).each for step in (1, 2)]
    assert torch.equal(tasks[0], torch.ones(16)) and not torch.equal(tasks[1], torch.ones(16))


def test_a_negative_gain_closes_the_gate():
    meta = meta_step(guard=1)
    assert meta.steers(0)
    meta.guard.update(-1.0)
    assert not meta.steers(0)
    assert torch.equal(meta.task(CONTEXT, meta.value_estimator, 0).each, torch.ones(16))


def test_a_designer_without_feedback_is_never_due():
    meta = meta_step()
    meta.designer.uses_feedback = False
    assert not any(meta.due(step) for step in range(8)) and meta.feedback.asked == 0


def test_a_meta_batch_of_its_own_is_what_the_designer_learns_from():
    """Its task is not one of the learner's batch, and has to be made."""
    draw, seen = torch.Generator().manual_seed(7), []

    class Batch(tuple):
        weight = tokens = 16

    meta = meta_step(batches=iter([Batch(pairs(draw))]))
    learn = meta.designer.learn
    meta.designer.learn = lambda context, value_of: seen.append(context) or learn(context, value_of)
    _, task = meta(CONTEXT, meta.value_estimator, 0.0)
    assert task is None and not torch.equal(seen[0].x, CONTEXT.x)


def test_a_meta_batch_of_its_own_draws_no_random_numbers():
    """Else the dropout of the learner's steps would differ from that of a run without it."""

    class Batch(tuple):
        weight = tokens = 16

    meta = meta_step(batches=iter([Batch(pairs(torch.Generator().manual_seed(7)))]))
    forward, modes = meta.learner.forward, []

    def dropping(batch):
        modes.append(meta.learner.model.training)
        x, y = batch
        return forward((torch.nn.functional.dropout(x, 0.5, meta.learner.model.training), y))

    meta.learner.forward = dropping
    before = torch.get_rng_state()
    meta(CONTEXT, meta.value_estimator, 0.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert modes == [False] and meta.learner.model.training


def test_feedback_that_is_not_finite_moves_nothing():
    class Broken(Truth):
        def gradients(self, learner):
            return [{"weight": torch.full((1, 3), torch.inf)}]

    meta = meta_step(feedback=Broken())
    with pytest.raises(NonFinite):
        meta(CONTEXT, meta.value_estimator, 0.0)
    assert meta.value_estimator.feedback_gradients == []


def test_alignment_is_that_of_the_gradient_the_learner_steps_on():
    meta = meta_step()
    meta(CONTEXT, meta.value_estimator, 0.0)
    weight = meta.learner.model.weight
    weight.grad = -2 * meta.value_estimator.feedback_gradients[0]["weight"]
    metrics = meta.alignment_metrics()
    assert metrics["cosine"] == pytest.approx(-1.0)
    assert metrics["gradient_norm_aligned"] == pytest.approx(float(weight.grad.norm()))
