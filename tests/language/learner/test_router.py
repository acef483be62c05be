"""The load-balancing loss of a mixture of experts."""

import pytest
import torch

from tests.language.conftest import tiny_batch
from tests.language.learner.test_architectures import (
    ARCHITECTURES,
    tiny,
)
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.language.learner.targets import one_hot


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_the_router_loss_is_that_of_transformers(kind):
    model = tiny(kind, ARCHITECTURES[kind])
    learner = CausalLearner(
        model, aligned_parameters(model, Anatomy.of(model), blocks=1, patterns=[])
    )
    batch = tiny_batch()
    context = learner.forward(batch)
    loss = learner.loss(context, one_hot(context.labels))
    counted = (batch.document >= 0).long()
    labels = batch.input_ids.masked_fill(~batch.predicted, -100)
    theirs = model(input_ids=batch.input_ids, attention_mask=counted, labels=labels)
    torch.testing.assert_close(context.router_loss, 0.1 * theirs.aux_loss)
    torch.testing.assert_close(loss, theirs.loss)
    parameters = dict(model.named_parameters())
    result = torch.autograd.grad(loss, parameters.values())
    for name, mine, other in zip(
        parameters, result, torch.autograd.grad(theirs.loss, parameters.values()), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6, msg=name)
