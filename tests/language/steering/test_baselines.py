"""Designers that use no feedback."""

import pytest
import torch

from vpretrain.language.steering.baselines import (
    LossWeights,
    OneHot,
    SelfDistillation,
    UniformSmoothing,
)
from vpretrain.language.steering.rules import TokenWeights
from vpretrain.method.reliability import correlation


def test_fixed_designers(context):
    hot = OneHot().make_task(context, None)
    assert hot.mass.tolist() == [[1.0]] * len(context.labels)
    smooth = UniformSmoothing(4, 0.2).make_task(context, None)
    torch.testing.assert_close(smooth.mass[:, 1:], torch.full((len(context.labels), 3), 0.05))
    own = SelfDistillation(4, 0.2).make_task(context, None)
    p = torch.softmax(context.logits, dim=1).gather(1, own.ids)
    expected = 0.2 * p / p.sum(dim=1, keepdim=True)
    expected[:, 0] += 0.8
    torch.testing.assert_close(own.mass, expected)


def test_loss_weights_follow_the_learners_own_probability(context):
    weights = LossWeights(TokenWeights(0.4)).make_task(context, None).mass[:, 0]
    log_p = torch.log_softmax(context.logits.detach(), dim=1).gather(1, context.labels[:, None])[
        :, 0
    ]
    assert correlation(weights, log_p) > 0.99 and weights.mean().item() == pytest.approx(
        1, abs=1e-6
    )
