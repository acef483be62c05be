"""Domain-matched alignment against its definition: each document with the feedback of its own
domain.
"""

import pytest
import torch

from tests.language.conftest import tiny_learner
from tests.reliability.processes import together
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import JoinedStreams, Source, Stream
from vpretrain.language.feedback.likelihood import Likelihood, parted
from vpretrain.language.learner.targets import SoftTargets, candidates
from vpretrain.language.steering.domains import ALL, Matched, MatchedFeedback, domains_of, matched
from vpretrain.method import vectors
from vpretrain.method.accumulation import MicroBatches, next_batches
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.feedback import MultiTaskFeedback
from vpretrain.method.roles import Designer, Learned, detached
from vpretrain.method.step import steered_step
from vpretrain.method.value import Alignment, adam_preconditioner
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system import distributed

SOURCES = {"sums": ["math", "proofs"], "code": ["code", "proofs"], "chat": []}


def documents(source, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        Document(
            torch.randint(3, 40, (6 + at % 3,), generator=generator).tolist(),
            [False] * 2 + [True] * (4 + at % 3),
            f"{source}:{at}",
            source,
        )
        for at in range(count)
    ]


def packed(names=("math", "code", "proofs", "prose")):
    sources = [Source(name, documents(name, 9, at), 1.0) for at, name in enumerate(names)]
    return Stream(sources, batch_size=3, window_tokens=24, seed=0, pad_id=0)


def tasks(weights):
    rows = {name: documents(name, 8, 40 + at) for at, name in enumerate(weights)}
    by_name = {
        name: Likelihood(parted(r, 2, batch_size=4, seed=0, pad_id=0)) for name, r in rows.items()
    }
    return MultiTaskFeedback(by_name, weights)


def task_on(context, seed=0):
    ids = candidates(context.logits, context.labels, 4)
    mass = torch.rand(
        ids.shape, generator=torch.Generator().manual_seed(seed), dtype=context.logits.dtype
    )
    return SoftTargets(ids, mass.to(context.logits))


def slow_value(learner, context, task, directions):
    """Per document: the gradient of its tokens' share of the loss, with what its domain wants."""
    log_p = torch.log_softmax(context.logits, dim=1).gather(1, task.ids)
    loss = -(task.mass * log_p).sum(dim=1) / len(task.mass)
    value = 0.0
    for at, document in enumerate(context.batch.documents):
        fraction = loss[context.document == at].sum()
        pre = torch.autograd.grad(fraction, list(learner.aligned.values()), retain_graph=True)
        value += float(
            vectors.inner(directions[document.source], dict(zip(learner.aligned, pre, strict=True)))
        )
    return value


def test_sources_that_several_tasks_name_hear_all_of_these_and_others_hear_all():
    domains, of_source = domains_of(SOURCES, ["sums", "code", "chat"])
    assert {domain: list(names) for domain, names in domains.items()} == {
        ALL: ["sums", "code", "chat"],
        "sums": ["sums"],
        "sums+code": ["sums", "code"],
        "code": ["code"],
    }
    assert of_source == {"math": "sums", "proofs": "sums+code", "code": "code"}


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_the_value_is_the_sum_over_documents_of_their_own_domains(estimator):
    learner = tiny_learner(dtype=torch.float64)
    together = tasks({"sums": 1.0, "code": 3.0, "chat": 2.0})
    view, feedback = matched(learner, together, SOURCES)
    context = view.forward(next(packed()))
    assert {d.source for d in context.batch.documents} == {"math", "code", "proofs", "prose"}
    task = task_on(context)
    value_estimator = ValueEstimator(view, Alignment("dot"), ESTIMATORS[estimator])
    value_estimator.update(feedback.gradients(view), None, 0.0)
    result = value_estimator(context, task)

    per_task = tasks({"sums": 1.0, "code": 3.0, "chat": 2.0}).each(
        learner
    )  # the same rows, drawn anew
    said = {name: vectors.mean([batch[name] for batch in per_task]) for name in together.tasks}
    directions = {
        "math": said["sums"],
        "code": said["code"],
        "proofs": vectors.mean([said["sums"], said["code"]]),
        "prose": vectors.mean(list(said.values())),
    }
    assert float(result.value) == pytest.approx(
        slow_value(learner, context, task, directions), rel=1e-6
    )

    # V is linear in the mass: the gradient along a change of it is the change of V.
    other = task_on(context, seed=1)
    change = float(value_estimator(context, other).value - result.value)
    assert float((result.gradient[0] * (other.mass - task.mass)).sum()) == pytest.approx(
        change, rel=1e-6
    )


def test_one_domain_with_all_tasks_is_the_plain_alignment():
    learner = tiny_learner(dtype=torch.float64)
    plain, copied = tasks({"sums": 1.0, "code": 2.0}), tasks({"sums": 1.0, "code": 2.0})
    view = Matched(learner, [ALL], {})
    context = learner.forward(next(packed()))
    values = []
    for each, feedback in (
        (learner, plain),
        (view, MatchedFeedback(copied, {ALL: ["sums", "code"]})),
    ):
        value_estimator = ValueEstimator(each, Alignment("dot"), ESTIMATORS["central_difference"])
        value_estimator.update(feedback.gradients(each), None, 0.0)
        values.append(value_estimator(context, task_on(context)))
    assert float(values[0].value) == pytest.approx(float(values[1].value), rel=1e-9)
    torch.testing.assert_close(values[0].gradient[0], values[1].gradient[0], rtol=1e-9, atol=1e-15)


def test_without_sources_nothing_is_wrapped():
    learner, together = tiny_learner(), tasks({"sums": 1.0})
    assert matched(learner, together, {"sums": []}) == (learner, together)


@pytest.mark.parametrize("alignment", ["dot", "cosine", "lower_bound", "optimizer_aware"])
@pytest.mark.parametrize("names", [("math", "code", "prose"), ("math", "math2")])
def test_a_step_runs_under_every_alignment_and_with_domains_that_are_absent(alignment, names):
    """And moves the parameters as the plain step does: copies are for valuing alone."""

    class Weigh(Designer):
        uses_feedback = True

        def baseline_task(self, context):
            return SoftTargets(context.labels[:, None], torch.ones(len(context.labels), 1))

        def learn(self, context, value_of):
            estimates = value_of.each(context, self.baseline_task(context))
            assert all(torch.isfinite(e.gradient[0]).all() for e in estimates)
            return Learned({"gain": float(sum(e.value for e in estimates))})

    def step(matching):
        learner = tiny_learner()
        sources = SOURCES if matching else {}
        view, feedback = matched(learner, tasks({"sums": 1.0, "code": 1.0, "chat": 1.0}), sources)
        optimizer = torch.optim.AdamW(learner.model.parameters(), lr=1e-3)
        taken = steered_step(
            view,
            Weigh(),
            feedback,
            ValueEstimator(view, Alignment(alignment), ESTIMATORS["double_backward"]),
            optimizer,
            period=1,
            preconditioner_floor=0.1,
            clip_norm=1.0,
            guard_window=0,
        )
        stream = packed(names)
        metrics = [taken(next_batches(stream, 1), 1e-3) for _ in range(3)]
        # Copies of S share one gradient, of which no cosine with theirs can be told.
        assert all(("cosine" in each) != matching for each in metrics)
        assert all(abs(each["cosine"]) <= 1 + 1e-5 for each in metrics if not matching)
        return learner.model.state_dict(), adam_preconditioner(optimizer, view.aligned, 0.1)

    (apart, copies), (plain, scale) = step(True), step(False)
    assert all(torch.equal(value, plain[name]) for name, value in apart.items())
    for name, piece in scale.items():
        torch.testing.assert_close(copies[f"code/{name}"], piece, rtol=1e-5, atol=0)


def test_what_the_learner_is_asked_for_stays_unlabeled():
    """The view's loss is the learner's own."""
    learner = tiny_learner()
    view = Matched(learner, [ALL, "code"], {"code": "code"})
    context = view.forward(next(packed()))
    task = detached(task_on(context))
    assert torch.equal(view.loss(context, task), learner.loss(context, task))


@pytest.mark.parametrize("alignment", ["dot", "cosine"])
def test_a_batch_of_each_domain_is_the_mean_of_its_alignments(alignment):
    """Eq. 46 by hand: one Align a domain over its own stream batch and feedback batch, then the
    mean; a joint direction over a mixed batch is another value.
    """
    learner = tiny_learner(dtype=torch.float64)
    sources = {"sums": ["math"], "code": ["code"]}
    streams = {
        name: Stream(
            [Source(source, documents(source, 9, at), 1.0)],
            batch_size=2 + at,
            window_tokens=24,
            seed=0,
            pad_id=0,
        )
        for at, (name, (source,)) in enumerate(sources.items())
    }
    batch = next(JoinedStreams(streams))
    assert batch.input_ids.shape == (5, 24)
    together = tasks({"sums": 1.0, "code": 3.0})
    view, feedback = matched(learner, together, sources, equal=True)
    (down, _) = feedback.gradients(view)
    context = view.forward(batch)
    task = task_on(context)
    groups = ("sums/", "code/")

    log_p = torch.log_softmax(context.logits, dim=1).gather(1, task.ids)
    losses = -(task.mass * log_p).sum(dim=1)
    expected = 0.0
    for name, (source,) in sources.items():
        own = torch.tensor([context.batch.documents[d].source == source for d in context.document])
        pre = torch.autograd.grad(
            losses[own].mean(), list(learner.aligned.values()), retain_graph=True
        )
        pre = dict(zip(learner.aligned, pre, strict=True))
        said = {key: down[f"{name}/{key}"] for key in pre}
        value = vectors.inner(said, pre)
        if alignment == "cosine":
            value = value / (vectors.norm(said) * vectors.norm(pre))
        expected += float(value.detach()) / 2

    def valued(groups):
        value_of = ValueEstimator(
            view, Alignment(alignment, groups=groups), ESTIMATORS["double_backward"]
        )
        value_of.update([down], None, 0.0)
        return value_of(context, task)

    result = valued(groups)
    assert float(result.value) == pytest.approx(expected, rel=1e-6)
    if alignment == "cosine":
        assert abs(float(valued(()).value) - expected) > 1e-3 * abs(expected)
        nudge = task.mass + 1e-5 * result.gradient[0] / result.gradient[0].norm()
        rise = ValueEstimator(
            view, Alignment(alignment, groups=groups), ESTIMATORS["double_backward"]
        )
        rise.update([down], None, 0.0)
        higher = rise(context, task.with_controls((nudge,))).value
        slope = float((higher - result.value) / 1e-5)
        assert slope == pytest.approx(float(result.gradient[0].norm()), rel=1e-2)


def value_of_domains(rank, world):
    """Eq. 46 of a batch of two domains, this process's part of it: the value over all processes."""
    streams = {
        name: Stream(
            [Source(name, documents(name, 9, at), 1.0)],
            batch_size=2 + 2 * at,
            window_tokens=24,
            seed=0,
            pad_id=0,
            rank=rank,
            world=world,
        )
        for at, name in enumerate(("math", "code"))
    }
    view, feedback = matched(
        tiny_learner(dtype=torch.float64),
        tasks({"sums": 1.0, "code": 3.0}),
        {"sums": ["math"], "code": ["code"]},
        equal=True,
    )
    value_of = ValueEstimator(view, Alignment("dot"), ESTIMATORS["double_backward"])
    value_of.update(feedback.gradients(view), None, 0.0)
    (part,) = MicroBatches((next(JoinedStreams(streams)),)).weighted()
    context = view.forward(part.batch)
    ids = context.labels[:, None]
    task = SoftTargets(ids, torch.ones(ids.shape, dtype=torch.float64))
    return float(value_of.on_part(part.fraction_of_batch)(context, task).value)


def test_domains_count_equally_over_all_processes():
    result = together(2, lambda: value_of_domains(distributed.rank(), 2))
    assert result == pytest.approx([value_of_domains(0, 1)] * 2, rel=1e-9)
