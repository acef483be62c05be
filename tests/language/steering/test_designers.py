"""Designers: what they make of values, and that noise does not move them."""

import pytest
import torch

from tests.language.conftest import downstream, tiny_batch, tiny_learner
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler, padded
from vpretrain.language.feedback import Likelihood, parted
from vpretrain.language.steering.ascent import CandidateDesigner, Prices
from vpretrain.language.steering.baselines import (
    LossWeights,
    OneHot,
    SelfDistillation,
    UniformSmoothing,
)
from vpretrain.language.steering.networks import FieldDesigner
from vpretrain.language.steering.rules import Anchored, GroupWeights, TokenWeights, WeightedTargets
from vpretrain.language.steering.scorer import CandidateScorer
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.feedback import EMAFeedback
from vpretrain.method.network import Learning
from vpretrain.method.reliability import Reliability, correlation
from vpretrain.method.roles import Estimate
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator


class Dictated:
    """An appraiser that says what it is told: one value tensor a feedback batch."""

    def __init__(self, *values):
        self.values = values

    def each(self, context, task):
        return [Estimate(torch.zeros(()), (value,)) for value in self.values]

    def __call__(self, context, task):
        return Estimate(torch.zeros(()), (torch.stack(self.values).mean(dim=0),))


@pytest.fixture
def context():
    return tiny_learner().forward(tiny_batch())


def values_like(context, count, seed):
    return torch.randn(len(context.labels), count, generator=torch.Generator().manual_seed(seed))


def learned(kind, learner, *, shrink=True, learning_rate=1e-2, updates=1, **options):
    torch.manual_seed(0)
    network = CandidateScorer(32, hidden=16, layers=1, heads=2, gated=kind is CandidateDesigner)
    learning = Learning(learning_rate, Reliability(shrink), updates)
    return kind(network, learner.anatomy.head.weight, Anchored(6), learning, **options)


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


def test_token_weights_by_hand(context):
    n = len(context.labels)
    values = torch.linspace(-1, 1, n)[:, None]
    designer = ExactDesigner(TokenWeights(0.4), Reliability(shrink=False))
    weights = designer.make_task(context, Dictated(values)).mass[:, 0]
    z = (values[:, 0] - values.mean()) / values[:, 0].std(correction=0)
    torch.testing.assert_close(weights, (1 + 0.4 * z) / (1 + 0.4 * z).mean())
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    steep = (
        ExactDesigner(TokenWeights(5.0), Reliability(shrink=False))
        .make_task(context, Dictated(values))
        .mass
    )
    assert steep.min() == 0 and steep.mean().item() == pytest.approx(1, abs=1e-6)


def test_token_weights_bound_an_outlier(context):
    values = torch.zeros(len(context.labels), 1)
    values[0] = 1e6
    weights = (
        ExactDesigner(TokenWeights(0.4), Reliability(shrink=False))
        .make_task(context, Dictated(values))
        .mass[:, 0]
    )
    assert weights[0] < 2.4 and weights[1:].min() > 0.8


RULES = {
    "closed_form": (6, Anchored(6)),
    "token_weights": (1, TokenWeights()),
    "document_weights": (1, GroupWeights(by="document")),
    "weighted_targets": (6, WeightedTargets(Anchored(6))),
}


@pytest.mark.parametrize("kind", RULES)
def test_agreeing_feedback_steers_and_disagreeing_feedback_does_not(context, kind):
    count, rule = RULES[kind]
    signal = values_like(context, count, 1)
    agreed, contradicted = (ExactDesigner(rule, Reliability(shrink=True)) for _ in range(2))
    metrics = agreed.learn(context, Dictated(signal, signal)).metrics
    contradicted.learn(context, Dictated(signal, -signal))
    assert metrics["agreement"] == pytest.approx(1) and metrics["gain"] > 0
    plain = agreed.baseline_task(context).mass[:, 0]
    assert (
        agreed.make_task(context, Dictated(signal, signal)).mass[:, 0] - plain
    ).abs().max() > 0.1
    still = contradicted.make_task(context, Dictated(signal, -0.9 * signal)).mass
    assert (still[:, 0] - plain).abs().max() < 1e-6


def test_reliability_is_spearman_brown():
    reliability = Reliability(shrink=True)
    generator = torch.Generator().manual_seed(0)
    signal, a, b = (torch.randn(50_000, 1, generator=generator) for _ in range(3))
    reliability.update([signal + a, signal + b])
    assert reliability.agreement == pytest.approx(0.5, abs=0.02)
    assert reliability.factor == pytest.approx(
        2 / 3, abs=0.02
    )  # var(signal) / var(mean of the halves)


def test_field_learns_the_values_it_is_shown():
    learner = tiny_learner()
    designer = learned(FieldDesigner, learner)
    context = learner.forward(tiny_batch(rows=6))
    target = learner.anatomy.head.weight.detach().sum(dim=1)  # a function of the candidate alone

    class ByToken:
        def each(self, context, task):
            return [Estimate(torch.zeros(()), (target[task.ids],))] * 2

    first = designer.learn(context, ByToken()).metrics["correlation"]
    for _ in range(60):
        last = designer.learn(context, ByToken()).metrics
    assert last["correlation"] > max(0.9, first) and last["gain"] > 0


def test_ascent_climbs_the_value():
    learner = tiny_learner()
    designer = learned(CandidateDesigner, learner, prices=Prices())
    context = learner.forward(tiny_batch(rows=6))
    value_of = Dictated(*[values_like(context, 6, 3)] * 2)
    gains = [designer.learn(context, value_of).metrics["gain"] for _ in range(60)]
    assert gains[-1] > 3 * abs(gains[0]) and gains[-1] > 0


def test_learning_leaves_every_learner_gradient_and_the_rng_alone():
    learner = tiny_learner()
    marker = next(iter(learner.aligned.values()))
    marker.grad = torch.full_like(marker, 7.0)
    value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS["central_difference"])
    state = torch.get_rng_state()
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    context = learner.forward(tiny_batch())
    for designer in (
        ExactDesigner(Anchored(6), Reliability(True)),
        learned(FieldDesigner, learner),
        learned(CandidateDesigner, learner, prices=Prices(entropy_bonus=0.1)),
    ):
        torch.set_rng_state(state)
        grad = marker.grad
        value_estimator.update([downstream(learner), downstream(learner, seed=8)], None, 0.0)
        designer.learn(context, value_estimator)
        designer.make_task(context, value_estimator)
        assert marker.grad is grad and (marker.grad == 7).all()
        assert all(p.grad is None for p in learner.model.parameters() if p is not marker)
        assert all(torch.equal(p, before[name]) for name, p in learner.model.named_parameters())
        assert torch.equal(torch.get_rng_state(), state)


def test_state_round_trips():
    learner = tiny_learner()
    context = learner.forward(tiny_batch())
    value_of = Dictated(values_like(context, 6, 1), values_like(context, 6, 2))
    for kind, options in ((FieldDesigner, {}), (CandidateDesigner, {"prices": Prices()})):
        one, other = (learned(kind, learner, **options) for _ in range(2))
        one.learn(context, value_of)
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.make_task(context, None).mass, other.make_task(context, None).mass)


def test_correlation():
    a = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert correlation(a, 3 * a + 2) == pytest.approx(1)
    assert correlation(a, torch.ones(4, 5)) == 0


def test_feedback_gradient_is_that_of_the_mean_over_all_solution_tokens():
    """Chunks of rows change the padding, not the mean (eq. 38)."""
    learner = tiny_learner(dtype=torch.float64)
    documents = [
        Document(list(range(3, 3 + size)), [at >= 2 for at in range(size)], f"fb:{size}", "fb")
        for size in range(4, 30)
    ]
    batch = padded(documents, pad_id=0)
    losses, _ = learner.token_losses(batch)
    expected = torch.autograd.grad(losses.mean(), list(learner.aligned.values()))
    (found,) = Likelihood(
        [Sampler(documents, batch_size=len(documents), seed=0, pad_id=0)]
    ).gradients(learner)
    for got, want in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_feedback_batches_share_no_rows():
    """Their agreement would otherwise be that of the same rows heard twice."""
    documents = [Document([1, 2, at], [False, False, True], f"fb:{at}", "fb") for at in range(20)]
    samplers = parted(documents, 2, batch_size=5, seed=0, pad_id=0)
    heard = [
        {document.origin for _ in range(4) for document in sampler.draw()} for sampler in samplers
    ]
    assert all(len(each) == 10 for each in heard) and not heard[0] & heard[1]


def test_remembered_gradients_are_the_mean_of_the_past():
    class Counting:
        def __init__(self):
            self.calls = 0

        def gradients(self, learner):
            self.calls += 1
            return [
                {"w": torch.tensor([float(self.calls)])},
                {"w": torch.tensor([-2.0 * self.calls])},
            ]

    remembered = EMAFeedback(Counting(), 0.5)
    assert [float(g["w"]) for g in remembered.gradients(None)] == [1, -2]
    first, second = remembered.gradients(None)
    assert float(first["w"]) == pytest.approx((0.5 * 1 + 2) / 1.5)
    assert float(second["w"]) == pytest.approx(-2 * (0.5 * 1 + 2) / 1.5)


def test_weighted_targets_are_targets_times_weights(context):
    values = values_like(context, 6, 4)
    both = (
        ExactDesigner(WeightedTargets(Anchored(6), 0.4), Reliability(shrink=False))
        .make_task(context, Dictated(values))
        .mass
    )
    soft = (
        ExactDesigner(Anchored(6), Reliability(shrink=False))
        .make_task(context, Dictated(values))
        .mass
    )
    torch.testing.assert_close(both / both.sum(dim=1, keepdim=True), soft)
    worth = (soft * values).sum(dim=1)
    z = (worth - worth.mean()) / worth.std(correction=0)
    weights = (1 + 0.4 * z.clamp(-3, 3)).clamp_min(0)
    torch.testing.assert_close(both.sum(dim=1), weights / weights.mean())


def test_document_weights_are_one_figure_a_document(context):
    values = values_like(context, 1, 5)
    weights = (
        ExactDesigner(GroupWeights(2.0, "document"), Reliability(False))
        .make_task(context, Dictated(values))
        .mass[:, 0]
    )
    row, at = context.where
    document = context.batch.document[row, at + 1]
    means = {
        int(d): values[document == d].sum() / (document == d).sum() ** 0.5
        for d in document.unique()
    }
    for d in means:
        assert weights[document == d].std(correction=0) < 1e-6
    ranked = sorted(means, key=means.get)
    by_weight = [float(weights[document == d][0]) for d in ranked]
    assert by_weight == sorted(by_weight) and by_weight[0] < by_weight[-1]


def test_loss_weights_follow_the_learners_own_probability(context):
    weights = LossWeights(TokenWeights(0.4)).make_task(context, None).mass[:, 0]
    log_p = torch.log_softmax(context.logits.detach(), dim=1).gather(1, context.labels[:, None])[
        :, 0
    ]
    assert correlation(weights, log_p) > 0.99 and weights.mean().item() == pytest.approx(
        1, abs=1e-6
    )


def test_an_anchored_ascent_comes_to_the_closed_form():
    """With exact values, a free network would climb to where the rule is at once: the field's and
    the paper's meet.
    """
    learner = tiny_learner()
    context = learner.forward(tiny_batch(rows=4))
    values = values_like(context, 6, 3)
    designer = learned(CandidateDesigner, learner, prices=Prices(anchor=1.0), updates=400)
    designer.learn(context, Dictated(values, values))
    gain = designer.learn(context, Dictated(values, values)).metrics["gain"]
    rule = ExactDesigner(Anchored(6, clip=float("inf")), Reliability(shrink=True))
    assert gain > 0.3 * rule.learn(context, Dictated(values, values)).metrics["gain"]
