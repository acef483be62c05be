"""Values that a test dictates, and small designers that learn from them."""

import torch

from vpretrain.language.steering.ascent import CandidateDesigner
from vpretrain.language.steering.rules import Anchored
from vpretrain.language.steering.scorer import CandidateScorer
from vpretrain.method.network import Learning
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Estimate


class Dictated:
    """A value function that says what it is told: one value tensor a feedback batch."""

    linear = True

    def __init__(self, *values):
        self.values = values

    def each(self, context, task):
        return [Estimate(torch.zeros(()), (value,)) for value in self.values]

    def __call__(self, context, task):
        return Estimate(torch.zeros(()), (torch.stack(self.values).mean(dim=0),))


def values_like(context, count, seed):
    return torch.randn(len(context.labels), count, generator=torch.Generator().manual_seed(seed))


def learned(kind, learner, *, shrink=True, learning_rate=1e-2, updates=1, **options):
    torch.manual_seed(0)
    network = CandidateScorer(32, hidden=16, layers=1, heads=2, gated=kind is CandidateDesigner)
    learning = Learning(learning_rate, Reliability(shrink), updates)
    return kind(network, learner.anatomy.head.weight, Anchored(6), learning, **options)
