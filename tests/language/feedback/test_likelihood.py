"""The loss of verified solutions is its slow loop."""

import pytest
import torch

from tests.language.conftest import tiny_learner
from vpretrain.language.data.batch import padded
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.feedback.likelihood import Likelihood

DOCUMENTS = [
    Document([1, 2, 3], [False, True, True], "a:1", "long"),
    Document([4, 5, 6, 7, 8, 9], [False] * 4 + [True] * 2, "a:2", "short"),
    Document(list(range(10, 22)), [True] * 12, "a:3", "long"),  # text, whose first is a given
]


def slow(mean, losses):
    if mean == "token":
        flat = [loss for document in losses for loss in document]
        return sum(flat) / len(flat)
    return sum(sum(document) / len(document) for document in losses) / len(losses)


@pytest.mark.parametrize("mean", ["token", "example"])
def test_the_feedbacks_loss_is_its_slow_loop(mean):
    learner = tiny_learner(dtype=torch.float64)
    sampler = Sampler(DOCUMENTS, batch_size=3, seed=0, pad_id=0)
    (gradient,) = Likelihood([sampler], mean).gradients(learner)
    context = learner.forward(padded(DOCUMENTS, pad_id=0))
    log_p = torch.log_softmax(context.logits, dim=1)
    losses = [
        [-log_p[n, context.labels[n]] for n in range(len(log_p)) if int(context.document[n]) == d]
        for d in range(3)
    ]
    pieces = torch.autograd.grad(slow(mean, losses), list(learner.aligned.values()))
    for (name, result), piece in zip(gradient.items(), pieces, strict=True):
        torch.testing.assert_close(result, piece, msg=name)
