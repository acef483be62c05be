"""The learner by passes over the head against the learner on whole logits: the same run, but for
what it costs.
"""

import pytest
import torch

from tests.language.conftest import downstream, tiny_batch, tiny_learner
from tests.language.learner.conftest import KINDS
from tests.language.learner.test_causal import learner_of, new_model
from vpretrain.language.learner import causal, predictions
from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.predictions import WholeLogits
from vpretrain.language.learner.targets import SoftTargets, one_hot
from vpretrain.language.steering.baselines import (
    LossWeights,
    OneHot,
    SelfDistillation,
    UniformSmoothing,
)
from vpretrain.language.steering.rules import Anchored, GroupWeights, TokenWeights, WeightedTargets
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.estimators import estimator
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system.errors import UserError

ARMS = {
    "onehot": OneHot,
    "uniform_smoothing": lambda: UniformSmoothing(6, 0.2),
    "self_distillation": lambda: SelfDistillation(6, 0.2),
    "loss_weights": lambda: LossWeights(TokenWeights(0.4)),
    "closed_form": lambda: ExactDesigner(Anchored(6), Reliability(shrink=False)),
    "token_weights": lambda: ExactDesigner(TokenWeights(0.4), Reliability(shrink=False)),
    "document_weights": lambda: ExactDesigner(
        GroupWeights(0.4, by="document"), Reliability(shrink=False)
    ),
    "weighted_targets": lambda: ExactDesigner(
        WeightedTargets(Anchored(6), 0.4), Reliability(shrink=False)
    ),
}


def both(monkeypatch, run):
    """What a run gives either way."""
    result = []
    for kind in KINDS:
        monkeypatch.setattr(predictions, "WHOLE_LOGITS", 0 if kind is HeadPass else 2**40)
        result.append(run(kind))
    return result


@pytest.mark.parametrize("family", ["qwen2", "llama"])  # head in S, and tied to the embedding
@pytest.mark.parametrize("arm", sorted(ARMS))
def test_a_step_of_every_arm(arm, family, monkeypatch):
    def run(kind):
        learner, designer = tiny_learner(family, torch.float64), ARMS[arm]()
        value_estimator = ValueEstimator(
            learner, Alignment("dot"), ESTIMATORS["central_difference"]
        )
        value_estimator.update([downstream(learner), downstream(learner, seed=8)], None, 0.0)
        context = learner.forward(tiny_batch())
        assert isinstance(context.predictions, kind)
        learned = designer.learn(context, value_estimator)
        task = designer.make_task(context, value_estimator)
        loss = learner.loss(context, task)
        loss.backward()
        pieces = [p.grad.flatten() for p in learner.model.parameters()]
        return [
            loss.detach(),
            torch.cat(pieces),
            task.mass,
            torch.tensor(list(learned.metrics.values())),
        ]

    for whole, passed in zip(*both(monkeypatch, run), strict=True):
        torch.testing.assert_close(passed, whole, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("alignment", ["dot", "cosine", "lower_bound"])
@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_values_by_every_estimator(family, estimator, alignment, monkeypatch):
    def run(kind):
        learner = tiny_learner(family, torch.float64)
        value_estimator = ValueEstimator(
            learner, Alignment(alignment, smoothness=2.0), ESTIMATORS[estimator]
        )
        value_estimator.update([downstream(learner)], None, 0.1)
        context = learner.forward(tiny_batch())
        targets = one_hot(context.labels, context.predictions.candidates(6), torch.float64)
        result = value_estimator(context, targets)
        return [result.value, result.gradient[0]]

    # The rounding of central differences, and curvature of the head, are on the one side only.
    for whole, passed in zip(*both(monkeypatch, run), strict=True):
        assert float((passed - whole).norm() / whole.norm()) < (
            1e-5 if estimator == "central_difference" else 1e-9
        )


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "gpt2"])
def test_heads_that_are_capped_or_scaled(family, monkeypatch):
    def run(kind):
        learner = learner_of(new_model(family).double())
        value_estimator = ValueEstimator(
            learner, Alignment("dot"), ESTIMATORS["central_difference"]
        )
        context = learner.forward(tiny_batch())
        value_estimator.update([downstream(learner)], None, 0.0)
        task = one_hot(context.labels, context.predictions.candidates(6), torch.float64)
        loss = learner.loss(context, task)
        slopes = torch.autograd.grad(loss, list(learner.aligned.values()), retain_graph=True)
        return [
            loss.detach(),
            torch.cat([s.flatten() for s in slopes]),
            value_estimator(context, task).gradient[0],
        ]

    whole, passed = both(monkeypatch, run)
    torch.testing.assert_close(passed[:2], whole[:2], rtol=1e-6, atol=1e-9)
    assert (
        float((passed[2] - whole[2]).norm() / whole[2].norm()) < 1e-3
    )  # norms that round to float32


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_values_under_bfloat16_arithmetic(family, monkeypatch):
    """The head's part of the values is in the products' dtype then, as its part of the learner's
    gradient is.
    """

    def run(kind):
        learner = learner_of(new_model(family), autocast=torch.bfloat16)
        wide = learner_of(new_model(family).double())
        value_estimator = ValueEstimator(
            learner, Alignment("dot"), ESTIMATORS["central_difference"]
        )
        value_estimator.update(
            [{name: g.float() for name, g in downstream(wide).items()}], None, 0.0
        )
        context = learner.forward(tiny_batch())
        ids = one_hot(context.labels).ids
        truth = wide.forward(tiny_batch())
        exact = ValueEstimator(wide, Alignment("dot"), ESTIMATORS["double_backward"])
        exact.update([downstream(wide)], None, 0.0)
        reference = exact(truth, one_hot(truth.labels, dtype=torch.float64)).gradient[0]
        result = value_estimator(context, one_hot(context.labels, ids)).gradient[0]
        return torch.nn.functional.cosine_similarity(
            result.double().flatten(), reference.flatten(), dim=0
        )

    whole, passed = both(monkeypatch, run)
    assert passed >= 0.999 and 1 - passed <= 2 * (1 - whole) + 1e-4


def test_values_under_dropout(monkeypatch):
    """They are those of the learner without dropout, which is another function than the one that
    was passed over.
    """

    def run(kind):
        torch.manual_seed(0)
        learner = tiny_learner("llama", torch.float64)
        for block in learner.model.train().model.layers:
            block.self_attn.attention_dropout = 0.5
        value_estimator = ValueEstimator(
            learner, Alignment("dot"), ESTIMATORS["central_difference"]
        )
        value_estimator.update([downstream(learner)], None, 0.0)
        context = learner.forward(tiny_batch())
        ids = torch.arange(4).expand(len(context.labels), -1) + 1 + context.labels[:, None]
        ids = torch.cat([context.labels[:, None], ids % learner.model.config.vocab_size], dim=1)
        assert learner.suffix.drops_out and not learner.suffix.reaches_head
        return [value_estimator(context, one_hot(context.labels, ids, torch.float64)).gradient[0]]

    (whole,), (passed,) = both(monkeypatch, run)
    assert float((passed - whole).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_losses_of_tokens_and_logits(kind, temperature):
    learner, batch = tiny_learner("llama", torch.float64), tiny_batch()
    losses, row = learner.token_losses(batch, temperature)
    context = learner.forward(batch)
    expected = torch.nn.functional.cross_entropy(
        context.logits / temperature, context.labels, reduction="none"
    )
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)
    upstream = 1.0 + row  # rows that count differently
    leaves = list(learner.model.parameters())
    for result, true in zip(
        torch.autograd.grad(losses @ upstream.double(), leaves),
        torch.autograd.grad(expected @ upstream.double(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(result, true, rtol=1e-8, atol=1e-9)


def test_dropout_above_s_is_not_in_what_is_valued(monkeypatch):
    """The learner's own pass is random then, and the objective is not."""

    def run(kind):
        learner = tiny_learner("llama", torch.float64)
        learner.model.train()
        for layer in learner.anatomy.blocks:
            layer.self_attn.attention_dropout = 0.5
        torch.manual_seed(0)
        context = learner.forward(tiny_batch())
        assert learner.suffix.drops_out
        value_estimator = ValueEstimator(
            learner, Alignment("dot"), ESTIMATORS["central_difference"]
        )
        value_estimator.update([downstream(tiny_learner("llama", torch.float64))], None, 0.0)
        return value_estimator(context, one_hot(context.labels, dtype=torch.float64)).gradient[0]

    torch.testing.assert_close(*both(monkeypatch, run), rtol=1e-7, atol=1e-12)


def test_what_is_refused(kind):
    learner = tiny_learner("llama")
    context = learner.forward(tiny_batch())
    with pytest.raises(UserError, match="1 to 40"):
        context.predictions.candidates(41)
    nothing = tiny_batch()
    nothing.predicted[:] = False
    with pytest.raises(UserError, match="no token of this batch"):
        observed = learner.forward(nothing)
        learner.loss(observed, one_hot(observed.labels))


def test_few_logits_and_heads_that_are_more_than_linear_are_taken_whole(monkeypatch):
    learner = tiny_learner("llama")
    assert isinstance(learner.forward(tiny_batch()).predictions, WholeLogits)
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", 0)
    assert isinstance(learner.forward(tiny_batch()).predictions, HeadPass)
    learner.anatomy.head = torch.nn.Sequential(learner.anatomy.head)
    assert isinstance(learner.forward(tiny_batch()).predictions, WholeLogits)


def test_values_beside_the_learners_own_pass(kind):
    """One-sided differences: a percent off at most, with one pass of the suffix in the place of
    two, whichever way the head is passed over."""
    learner = tiny_learner("llama", torch.float32)
    context = learner.forward(tiny_batch())
    ids = context.predictions.candidates(6)
    draw = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    task = SoftTargets(ids, draw / draw.sum(dim=1, keepdim=True))
    objective = learner.objective(context, task)
    point = {name: p.detach() for name, p in learner.aligned.items()}
    known = objective.here(task.controls())
    assert float(known) == pytest.approx(float(objective.loss(point, task.controls())), rel=1e-5)
    passes = []
    run = learner.suffix.hidden
    learner.suffix.hidden = lambda *given: passes.append(1) or run(*given)
    result = {}
    for name in ("double_backward", "central_difference", "one_sided_difference"):
        valued = ValueEstimator(learner, Alignment("dot"), estimator(name))
        valued.update([downstream(learner)], None, 0.0)
        valued(context, task)  # measures its step
        passes.clear()
        result[name] = valued(context, task).gradient[0], len(passes)
    exact = result["double_backward"][0]
    gradient, count = result["one_sided_difference"]
    assert float((gradient - exact).norm()) <= 1e-2 * float(exact.norm())
    assert (count, result["central_difference"][1]) == (1, 2)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_narrow_learner_is_valued_in_its_own_dtype(monkeypatch, autocast):
    """Its pass is no side of a difference; one pass with tangents takes the place of two in
    float32."""
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", 0)
    dtype = torch.float32 if autocast else torch.bfloat16
    learner = tiny_learner("llama", dtype)
    learner.autocast = torch.bfloat16 if autocast else None
    assert not learner.suffix.reaches_head
    context = learner.forward(tiny_batch())
    task = one_hot(context.labels)
    assert learner.objective(context, task).here is None
    passes = []
    run = learner.suffix.hidden
    learner.suffix.hidden = lambda *given: passes.append(1) or run(*given)
    result = {}
    for name in ("double_backward", "one_sided_difference"):
        valued = ValueEstimator(learner, Alignment("dot"), estimator(name))
        valued.update([downstream(learner)], None, 0.0)
        valued(context, task)  # checks its error
        passes.clear()
        result[name] = valued(context, task).gradient[0], len(passes)
    exact, (gradient, count) = result["double_backward"][0], result["one_sided_difference"]
    assert count == 1
    assert 1e-5 <= float((gradient - exact).norm() / exact.norm()) <= 2e-2


def test_a_head_in_s_is_not_valued_in_a_narrow_dtype(monkeypatch):
    """Its logits would be as coarse as the dtype."""
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", 0)
    learner = tiny_learner("qwen2", torch.bfloat16)
    assert learner.suffix.reaches_head
    context = learner.forward(tiny_batch())
    objective = learner.objective(context, one_hot(context.labels))
    assert objective.here is None and objective.narrow is None


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "limit", [(causal, "WHOLE_SCORES", 3 * 12**2), (predictions, "WHOLE_LOGITS", 2**22)]
)
def test_a_batch_that_the_narrow_dtype_does_not_serve(monkeypatch, first, limit):
    """Attention scores that would be made whole, or coarse logits. The first batch decides for the
    run, any other for itself, since another process may have another one."""
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", 0)
    learner = tiny_learner("llama", torch.bfloat16)
    served = learner.forward(tiny_batch())
    result = {}
    for name in ("central_difference", "one_sided_difference"):
        valued = ValueEstimator(learner, Alignment("dot"), estimator(name))
        valued.update([downstream(learner)], None, 0.0)
        if not first:
            valued(served, one_hot(served.labels))
        with monkeypatch.context() as patch:
            patch.setattr(*limit)
            context = learner.forward(tiny_batch())
            result[name] = valued(context, one_hot(context.labels)).gradient[0]
    assert (valued.estimator.way.name == "central_difference") == first
    torch.testing.assert_close(*result.values(), rtol=1e-2, atol=1e-5)
