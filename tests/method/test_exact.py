"""Designers of exact values, in a modality of the tests' own."""

import gc
import weakref

import pytest
import torch

from tests.method.toy import (
    Context,
    Given,
    PairWeights,
    Regression,
    Truth,
    Weights,
    ascent,
    exact,
    pairs,
    trained,
)
from vpretrain.method import vectors
from vpretrain.method.directional import double_backward
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.method.rules import tilted
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator


def test_another_modality_is_steered_through_public_names_alone():
    plain = trained(ExactDesigner(Unmoved(), Reliability(shrink=True)))[0]
    for designer in (exact(), ascent()):
        distance, history = trained(designer)
        assert distance < 0.7 * plain
        assert history[-2]["gain"] > 0 and 0 < history[-2]["gate"] < 1


class Unmoved(PairWeights):
    """Feedback moves nothing."""

    def task(self, probe, values):
        return Weights(tilted(0 * values, 1.0))


def test_a_single_feedback_batch_is_enough_where_values_do_not_shrink():
    """Nothing to agree with: reliability stays where it was, and there is no gain to tell."""
    distance, history = trained(exact(shrink=False), batches=1)
    assert (
        distance < 0.7 * trained(ExactDesigner(Unmoved(), Reliability(shrink=False)), batches=1)[0]
    )
    assert "agreement" not in history[0] and "gain" not in history[0]


def test_contradicting_feedback_gives_the_plain_task_bit_for_bit():
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    signal = torch.randn(16, generator=torch.Generator().manual_seed(2))
    designer = exact()
    learned = designer.learn(context, Given(signal, -signal))
    assert learned.metrics["gate"] == 0
    assert torch.equal(learned.task.each, torch.ones(16))


@pytest.mark.parametrize("steer", [True, False])
def test_the_context_is_let_go_whether_the_gate_is_open_or_shut(steer):
    """A context holds logits and graph: none may wait for the next meta step."""

    class Large:
        pass

    large = Large()
    context = Context(*pairs(torch.Generator().manual_seed(0)), large)
    reference, value_of, designer = (
        weakref.ref(large),
        Given(torch.arange(16.0), torch.arange(16.0)),
        exact(),
    )
    del large
    designer.learn(context, value_of)
    task = designer.make_task(context, value_of) if steer else designer.baseline_task(context)
    del context
    gc.collect()
    assert reference() is None and task.each.shape == (16,)


def test_noise_gains_nothing_however_often_its_halves_happen_to_agree():
    """Halves that agree by chance also open the shrinkage; the gain must not see that."""
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    drawn, designer = torch.Generator().manual_seed(5), exact()
    gains = torch.tensor(
        [
            designer.learn(context, Given(*torch.randn(2, 16, generator=drawn).unbind())).metrics[
                "gain"
            ]
            for _ in range(600)
        ]
    )
    assert abs(gains.mean()) < 3 * gains.std() / len(gains) ** 0.5
    windows = gains.unfold(0, 16, 16).sum(dim=1)
    assert 0.25 < (windows >= 0).float().mean() < 0.75, "so that a guard may close"


def test_the_next_task_follows_the_direction_that_all_others_do_where_values_are_not_linear():
    """The cosine along a mean is not the mean of the cosines."""

    class Cosine(Given):
        linear = False

        def __call__(self, context, task):
            return self._of(torch.arange(16.0) ** 2, task)

    context = Context(*pairs(torch.Generator().manual_seed(0)))
    designer = exact(shrink=False)
    value_of = Cosine(torch.arange(16.0), torch.arange(16.0))
    learned = designer.learn(context, value_of)
    assert torch.equal(learned.task.each, designer.make_task(context, value_of).each)


@pytest.mark.parametrize("alignment", ["dot", "cosine", "lower_bound"])
def test_the_value_of_the_plain_task_is_that_of_the_alignment(alignment):
    """Where it is not linear, the value is not the sum of the pairs' own values."""
    learner, context = Regression(), Context(*pairs(torch.Generator().manual_seed(0)))
    value_of = ValueEstimator(learner, Alignment(alignment), double_backward)
    value_of.update(Truth().gradients(learner), None, 0.1)
    metrics = exact().learn(context, value_of).metrics
    down = vectors.mean(value_of.feedback_gradients)["weight"]
    plain = learner.loss(context, PairWeights().baseline_task(context))
    pre = torch.autograd.grad(plain, learner.model.weight)[0]
    dot, smoothness = float((down * pre).sum()), value_of.alignment.smoothness
    expected = {
        "dot": dot,
        "cosine": dot / float(down.norm() * pre.norm()),
        "lower_bound": dot - smoothness * 0.1 / 2 * float(pre.square().sum()),
    }
    assert metrics["value_baseline"] == pytest.approx(expected[alignment], rel=1e-5)


def test_rules_read_values_in_standard_deviations_whatever_others_are_given():
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    value_of = Given(1e-3 * torch.arange(16.0), 1e-3 * torch.arange(16.0))
    tasks = [
        ExactDesigner(PairWeights(), Reliability(shrink=False, unit=unit)).make_task(
            context, value_of
        )
        for unit in ("standardised", "raw")
    ]
    assert torch.equal(tasks[0].each, tasks[1].each) and float(tasks[0].each.std()) > 0.1
