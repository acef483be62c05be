"""Means of per-example means (eq. 37, 38) beside means over tokens, each against its slow loop."""

import dataclasses

import pytest
import torch

from tests.language.conftest import tiny_learner
from vpretrain.language.data.batch import laid_out
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.feedback.likelihood import Likelihood
from vpretrain.language.learner import predictions
from vpretrain.language.learner.targets import SoftTargets
from vpretrain.language.steering.domains import Matched
from vpretrain.method.accumulation import MicroBatches
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator

DOCUMENTS = [
    Document([1, 2, 3], [False, True, True], "a:1", "long"),
    Document([4, 5, 6, 7, 8, 9], [False] * 4 + [True] * 2, "a:2", "short"),
    Document(list(range(10, 22)), [False] + [True] * 11, "a:3", "long"),
]


def batch(mean):
    rows = [[DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[2]]]
    return laid_out(rows, width=14, pad_id=0, padding_apart=True, loss_mean=mean)


def soft(context, count=4):
    """Targets that are not one-hot."""
    ids = context.predictions.candidates(count)
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    return SoftTargets(ids, mass / mass.sum(dim=1, keepdim=True))


def by_document(context, task):
    """``-sum_k mass log p`` of every predicted token, by document."""
    log_p = torch.log_softmax(context.logits.detach().double(), dim=1)
    losses = {}
    for n, document in enumerate(context.document.tolist()):
        loss = -sum(
            float(mass) * float(log_p[n, token])
            for mass, token in zip(task.mass[n], task.ids[n], strict=True)
        )
        losses.setdefault(document, []).append(loss)
    return list(losses.values())


def slow(mean, losses):
    if mean == "token":
        flat = [loss for document in losses for loss in document]
        return sum(flat) / len(flat)
    return sum(sum(document) / len(document) for document in losses) / len(losses)


@pytest.mark.parametrize("whole", [0, 2**22])
@pytest.mark.parametrize("mean", ["token", "example"])
def test_the_streams_loss_is_its_slow_loop(mean, whole, monkeypatch):
    """With logits as a whole, and passed over in chunks."""
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", whole)
    learner = tiny_learner(dtype=torch.float64)
    context = learner.forward(batch(mean))
    assert isinstance(context.predictions, predictions.WholeLogits) == bool(whole)
    task = soft(context)
    loss = learner.loss(context, task)
    expected = slow(mean, by_document(context, task))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    point = {name: p.detach() for name, p in learner.aligned.items()}
    objective = learner.objective(context, task)
    assert float(objective.loss(point, objective.inputs)) == pytest.approx(expected, rel=1e-6)
    # the gradient, weights of the head among them, is that of the loop too
    loss.backward()
    chunked = learner.anatomy.head.weight.grad.clone()
    learner.model.zero_grad()
    again = learner.forward(batch(mean))
    log_p = torch.log_softmax(again.logits, dim=1).gather(1, task.ids)
    losses = -(task.mass * log_p).sum(dim=1)
    parts = [losses[again.document == d] for d in range(3)]
    (torch.cat(parts).mean() if mean == "token" else sum(p.mean() for p in parts) / 3).backward()
    torch.testing.assert_close(chunked, learner.anatomy.head.weight.grad)


def test_batches_of_a_step_count_by_what_their_loss_is_a_mean_over():
    """Two batches as one step are one batch of all their rows."""
    learner = tiny_learner(dtype=torch.float64)
    for mean in ("token", "example"):
        whole = learner.forward(batch(mean))
        expected = learner.loss(whole, soft(whole, 1))
        halves = [
            laid_out([row], width=14, pad_id=0, padding_apart=True, loss_mean=mean)
            for row in ([DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[2]])
        ]
        total = 0.0
        for part in MicroBatches(tuple(halves)).weighted():
            context = learner.forward(part.batch)
            total += part.fraction * float(learner.loss(context, soft(context, 1)).detach())
        assert total == pytest.approx(float(expected.detach()))


def test_domains_share_the_mean_of_means():
    """Where all domains have the same feedback, the domain-matched value is the whole batch's."""
    learner = tiny_learner(dtype=torch.float64)
    matched = Matched(learner, ["*", "long"], {"long": "long"})
    sampler = Sampler(DOCUMENTS, batch_size=3, seed=0, pad_id=0)
    (down,) = Likelihood([sampler], "example").gradients(learner)
    values = []
    for of, gradient in (
        (learner, down),
        (matched, {f"{d}/{name}": g for d in ("*", "long") for name, g in down.items()}),
    ):
        value_of = ValueEstimator(of, Alignment("dot"), ESTIMATORS["double_backward"])
        value_of.update([gradient], None, 0.0)
        context = of.forward(batch("example"))
        values.append(float(value_of(context, soft(context)).value))
    assert values[0] == pytest.approx(values[1])
    assert dataclasses.replace(batch("example"), loss_mean="token").weight == 15
    assert batch("example").weight == 3
