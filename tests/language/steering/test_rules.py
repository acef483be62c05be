"""What rules make of values, and that noise does not move them."""

from dataclasses import replace

import pytest
import torch

from tests.language.conftest import downstream, tiny_batch, tiny_learner
from tests.language.steering.dictated import Dictated, values_like
from vpretrain.language.steering.dga import SourceMixture
from vpretrain.language.steering.rules import Anchored, GroupWeights, TokenWeights, WeightedTargets
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator


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


def test_a_tokens_value_is_without_its_share_in_a_mean_over_documents():
    """Else tokens of a short document would stand out, whatever they are worth."""
    learner, plain = tiny_learner(), tiny_batch()
    contexts = [
        learner.forward(replace(plain, loss_mean=loss_mean)) for loss_mean in ("token", "example")
    ]
    down = downstream(learner)
    value_of = ValueEstimator(learner, Alignment("dot"), ESTIMATORS["double_backward"])
    value_of.update([down, downstream(learner, seed=8)], None, 0.0)
    for _, rule in RULES.values():
        one, other = (
            ExactDesigner(rule, Reliability(shrink=True)).learn(context, value_of).task.mass
            for context in contexts
        )
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    one, other = (SourceMixture(0.1, 0.5, Reliability(True)) for _ in contexts)
    for mixture, context in zip((one, other), contexts, strict=True):
        document = context.batch.documents[0]
        documents = (replace(document, source="another"), *context.batch.documents[1:])
        mixture.learn(replace(context, batch=replace(context.batch, documents=documents)), value_of)
    assert one.logs == pytest.approx(other.logs, rel=1e-3) and abs(one.logs["test"]) > 1e-3


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


@pytest.mark.parametrize(
    ("rows", "by", "is_told"),
    [(3, "document", True), (1, "document", False), (3, "source", False)],
)
def test_where_there_is_nothing_to_compare_no_spread_is_told(rows, by, is_told):
    """It would be 0 at every meta step, and look like a collapse."""
    context = tiny_learner().forward(tiny_batch(rows=rows))
    designer = ExactDesigner(GroupWeights(by=by), Reliability(shrink=True))
    values = values_like(context, 1, seed=0)
    assert ("weight_spread" in designer.learn(context, Dictated(values, values)).metrics) is is_told


@pytest.mark.parametrize("arm", ["token", "document"])
def test_documents_one_at_a_time_are_weighted_like_a_batch_of_them(arm):
    """After the first few, which have little to be compared with."""
    rule = TokenWeights() if arm == "token" else GroupWeights(1.5, by="document")
    designer, learner = ExactDesigner(rule, Reliability(shrink=False)), tiny_learner()
    generator, weights, effects = torch.Generator().manual_seed(0), [], []
    for seed in range(60):
        context = learner.forward(tiny_batch(rows=1, seed=seed))
        effect = float(torch.randn((), generator=generator))
        values = effect + 0.1 * values_like(context, 1, seed)
        if seed == 0:
            designer.learn(context, Dictated(values, values))
        task = designer.make_task(context, Dictated(values))
        weights.append(float(task.mass.mean()))
        effects.append(effect)
    rank = torch.corrcoef(torch.tensor([weights[10:], effects[10:]]))[0, 1]
    assert rank > 0.8 and sum(weights) / len(weights) == pytest.approx(1, abs=0.1)
