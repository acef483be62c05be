"""A modality of the tests' own: weighted pairs of numbers under two laws, nothing of language or
vision. It has one learner, a feedback set, a rule, a surface and a network.
"""

from dataclasses import dataclass
from typing import Any

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

    weighted = True

    def baseline_task(self, context):
        return Weights(torch.ones(len(context.x)))

    def probe(self, context):
        return self.baseline_task(context)

    def values(self, probe, gradient):
        return gradient

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


class Given:
    """A value function with given gradients, one a feedback batch."""

    linear = True

    def __init__(self, *gradients):
        self.gradients = gradients

    def each(self, context, task):
        return [self._of(gradient, task) for gradient in self.gradients]

    def __call__(self, context, task):
        return self._of(sum(self.gradients) / len(self.gradients), task)

    def _of(self, gradient, task):
        control = task.controls()[0]
        gradient = gradient.expand(control.shape)
        return Estimate((gradient * control).sum(), (gradient,))


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
