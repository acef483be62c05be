"""One gradient for a matrix that is both input embedding and head."""

import pytest
import torch

from tests.language.conftest import tiny_batch, tiny_learner
from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.targets import one_hot


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tied_embedding_has_one_gradient_and_no_table_of_its_own(family, kind, monkeypatch):
    learner, batch = tiny_learner(family, torch.float64), tiny_batch()
    weight = learner.anatomy.head.weight
    context = learner.forward(batch)
    learner.loss(context, one_hot(context.labels)).backward()
    result = weight.grad
    assert result.layout == torch.strided
    weight.grad = None
    logits = learner.model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).logits
    torch.nn.functional.cross_entropy(logits[context.where], context.labels).backward()
    torch.testing.assert_close(
        result, weight.grad, rtol=1e-5, atol=1e-9
    )  # some norms round to float32
    if kind is HeadPass:
        passed = learner.forward(batch)
        loss = learner.loss(passed, one_hot(passed.labels))
        # What a backward pass that does not come to the lookup leaves is in no other one.
        torch.autograd.grad(loss, list(learner.aligned.values()), retain_graph=True)
        weight.grad = None
        loss.backward(retain_graph=True)
        torch.testing.assert_close(weight.grad, result)
        weight.grad = None
        (loss + learner.loss(passed, one_hot(passed.labels))).backward()
        torch.testing.assert_close(weight.grad, 2 * result)
        again = learner.forward(batch)
        loss = learner.loss(again, one_hot(again.labels))
        place, weight.grad = again.predictions._pass.dense.weight.data_ptr(), None
        loss.backward()
        assert weight.grad.data_ptr() == place  # rows were added to it where it is
        losses, _ = learner.token_losses(batch)
        weight.grad = None
        losses.mean().backward()
        torch.testing.assert_close(weight.grad, result)
