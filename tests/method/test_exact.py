"""Exact values and ascent in a modality of the test's own: weighted pairs of numbers, nothing of
language or vision.
"""

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from vpretrain.method.accumulation import MicroBatches
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.exact import ExactDesigner, Rule
from vpretrain.method.network import Learning, NetworkDesigner, Surface
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Estimate, Feedback, Learner, Objective
from vpretrain.method.rules import tilted
from vpretrain.method.step import steered_step
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator

TRUTH, LIE = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[-1.0, 1.0, 2.0]])


@dataclass
class Weights:
    """Pairs that count for something."""

    each: torch.Tensor

    def controls(self):
        return (self.each,)

    def with_controls(self, controls):
        return Weights(*controls)


@dataclass
class Context:
    x: torch.Tensor
    y: torch.Tensor
    large: Any = None


class Regression(Learner):
    """Predicts y from x, pair by pair; its stream follows two laws, half of the pairs each."""

    def __init__(self):
        self.model = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.aligned = dict(self.model.named_parameters())

    def forward(self, batch):
        return Context(*batch)

    def loss(self, context, task):
        return self.objective(context, task).loss(self.aligned, task.controls())

    def objective(self, context, task):
        def loss(parameters, inputs):
            errors = (context.x @ parameters["weight"].T - context.y)[:, 0] ** 2
            return (inputs[0] * errors).mean()

        return Objective(task.controls(), loss)


class Truth(Feedback):
    """Feedback: pairs of the one law that is wanted, two batches at a time."""

    def __init__(self, batches=2):
        self.draw, self.batches = torch.Generator().manual_seed(1), batches

    def gradients(self, learner):
        return [self._one(learner) for _ in range(self.batches)]

    def _one(self, learner):
        x = torch.randn(32, 3, generator=self.draw)
        loss = ((learner.model(x) - x @ TRUTH.T) ** 2).mean()
        return {"weight": torch.autograd.grad(loss, learner.model.weight)[0]}


class PairWeights(Rule):
    """Pairs count by their value."""

    def baseline_task(self, context):
        return Weights(torch.ones(len(context.x)))

    def probe(self, context):
        return self.baseline_task(context)

    def values(self, probe, gradient):
        return gradient - gradient.mean()

    def task(self, probe, values):
        return Weights(tilted(values, 1.0))


class Gates(Surface):
    """A gate in [0, 1] a pair."""

    def baseline_task(self, context):
        return Weights(torch.ones(len(context.x)))

    valued_baseline_task = baseline_task

    def inputs(self, context):
        return torch.cat([context.x * context.y, context.y], dim=1)

    def task(self, context, choice):
        return Weights(choice)

    def part(self, context, rows):
        return Context(context.x[:rows], context.y[:rows])

    def metrics(self, choice):
        return {"gate": 1 - float(choice.mean())}


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 1)

    def forward(self, inputs):
        return torch.sigmoid(self.line(inputs)[:, 0])


class Says:
    """An appraiser that says given gradients, one a feedback batch."""

    def __init__(self, *gradients):
        self.gradients = gradients

    def each(self, context, task):
        return [self._of(gradient, task) for gradient in self.gradients]

    def __call__(self, context, task):
        return self._of(sum(self.gradients) / len(self.gradients), task)

    def _of(self, gradient, task):
        return Estimate((gradient * task.each).sum(), (gradient,))


def pairs(draw):
    x = torch.randn(16, 3, generator=draw)
    return x, torch.cat([x[:8] @ TRUTH.T, x[8:] @ LIE.T])


def trained(designer, batches=2, steps=60):
    """How far the learner ends from the law that feedback speaks of."""
    learner, draw = Regression(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=0.05, weight_decay=0.0)
    value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS["double_backward"])
    step = steered_step(
        learner,
        designer,
        Truth(batches),
        value_estimator,
        optimizer,
        period=2,
        preconditioner_floor=0.1,
        clip_norm=10.0,
        guard_window=8,
    )
    history = [step(MicroBatches((pairs(draw),)), 0.05) for _ in range(steps)]
    return float((learner.model.weight.detach() - TRUTH).norm()), history


def exact(shrink=True):
    return ExactDesigner(PairWeights(), Reliability(shrink=shrink))


def ascent(rate=0.02, unit="standardised", **options):
    return NetworkDesigner(
        Gate(),
        Gates(),
        lambda choice: 0 * choice.sum(),
        Learning(rate, Reliability(True, unit=unit), 2),
        **options,
    )


def test_another_modality_is_steered_through_public_names_alone():
    plain = trained(ExactDesigner(Snapshot(), Reliability(shrink=True)))[0]
    for designer in (exact(), ascent()):
        distance, history = trained(designer)
        assert distance < 0.7 * plain
        assert history[-2]["gain"] > 0 and 0 < history[-2]["gate"] < 1


class Snapshot(PairWeights):
    """Hears everything and moves nothing."""

    def task(self, probe, values):
        return Weights(tilted(0 * values, 1.0))


def test_a_single_feedback_batch_is_enough_where_values_do_not_shrink():
    """Nothing to agree with: reliability stays where it was, gain is valued by the batch that made
    the task.
    """
    distance, history = trained(exact(shrink=False), batches=1)
    assert (
        distance < 0.7 * trained(ExactDesigner(Snapshot(), Reliability(shrink=False)), batches=1)[0]
    )
    assert "agreement" not in history[0] and history[0]["gain"] > 0


def test_contradicting_feedback_gives_the_plain_task_bit_for_bit():
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    signal = torch.randn(16, generator=torch.Generator().manual_seed(2))
    designer = exact()
    learned = designer.learn(context, Says(signal, -signal))
    assert learned.metrics["gate"] == 0
    assert torch.equal(learned.task.each, torch.ones(16))


@pytest.mark.parametrize("steer", [True, False])
def test_the_context_is_let_go_whether_the_gate_is_open_or_shut(steer):
    """A context holds logits and graph: none may wait for the next meta step."""

    class Large:
        pass

    large = Large()
    context = Context(*pairs(torch.Generator().manual_seed(0)), large)
    held, description, designer = (
        weakref.ref(large),
        Says(torch.arange(16.0), torch.arange(16.0)),
        exact(),
    )
    del large
    designer.learn(context, description)
    task = designer.make_task(context, description) if steer else designer.baseline_task(context)
    del context
    gc.collect()
    assert held() is None and task.each.shape == (16,)


def test_ascent_hears_of_the_first_rows_alone():
    asked = []

    class Counting(Says):
        def each(self, context, task):
            asked.append(len(context.x))
            return super().each(context, task)

    context = Context(*pairs(torch.Generator().manual_seed(0)))
    designer = ascent(meta_rows=4)
    designer.learn(context, Counting(torch.ones(4), torch.ones(4)))
    assert asked == [4, 4] and designer.make_task(context, None).each.shape == (16,)


def test_ascent_follows_the_tangent_of_the_value_at_its_own_choice():
    """`raw`: one step moves the network along -(dV/d control) d control/d phi, here by hand for a
    linear gate.
    """
    designer = ascent(unit="raw")
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    worth = torch.randn(16, generator=torch.Generator().manual_seed(3))
    inputs = designer.surface.inputs(context)
    choice = designer.network(inputs).detach()
    expected = (worth * choice * (1 - choice)) @ inputs  # ascent: towards more value
    before = designer.network.line.weight.detach().clone()
    designer.learning.updates = 1
    designer.learn(context, Says(worth, worth))
    moved = designer.network.line.weight.detach() - before
    assert torch.equal(torch.sign(moved[0]), torch.sign(expected))  # Adam's first step is its sign
