"""The three estimators agree with each other, with float64, and with a value worked out by hand."""

import pytest
import torch

from tests.language.conftest import downstream, tiny_batch, tiny_learner
from vpretrain.language.learner.targets import one_hot
from vpretrain.language.steering.ascent import CandidateDesigner, Prices
from vpretrain.language.steering.rules import Anchored
from vpretrain.language.steering.scorer import CandidateScorer
from vpretrain.method.directional import ESTIMATORS, EstimatorUnsupported, double_backward
from vpretrain.method.network import Learning
from vpretrain.method.reliability import Reliability
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator

ALIGNMENTS = ["dot", "optimizer_aware", "cosine", "lower_bound"]


def designer_gradient(learner, alignment, estimator, down=None):
    """dV/d phi of a small paper-style designer, as one float64 vector."""
    context = learner.forward(tiny_batch())
    torch.manual_seed(3)
    width = learner.anatomy.head.weight.shape[1]
    network = CandidateScorer(width, hidden=16, layers=1, heads=2, gated=True).double()
    learning = Learning(0.0, Reliability(shrink=False))
    designer = CandidateDesigner(
        network, learner.anatomy.head.weight, Anchored(6, gate_max=0.5), learning, Prices()
    )
    value_estimator = ValueEstimator(
        learner, Alignment(alignment, smoothness=2.0), ESTIMATORS[estimator]
    )
    down = downstream(learner) if down is None else down
    preconditioner = {
        name: 1 / (0.1 + g.double().abs() / g.double().abs().mean()) for name, g in down.items()
    }
    value_estimator.update(
        [down], {n: p.to(down[n].dtype) for n, p in preconditioner.items()}, step_size=0.1
    )
    task = designer.propose(context)
    (cotangent,) = value_estimator(context, task).gradient
    pieces = torch.autograd.grad(
        task.mass, list(network.parameters()), cotangent.to(task.mass.dtype), allow_unused=True
    )
    return torch.cat([p.double().flatten() for p in pieces if p is not None])


def relative_error(a, b):
    return float((a - b).norm() / b.norm())


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_float64_estimators_agree(family, alignment):
    learner = tiny_learner(family, torch.float64)
    reference = designer_gradient(learner, alignment, "double_backward")
    assert relative_error(designer_gradient(learner, alignment, "forward_mode"), reference) < 1e-6
    assert (
        relative_error(designer_gradient(learner, alignment, "central_difference"), reference)
        < 1e-5
    )


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_float32_against_float64(family, alignment, estimator):
    wide = designer_gradient(tiny_learner(family, torch.float64), alignment, "double_backward")
    weights = tiny_learner(family, torch.float64).model.state_dict()
    narrow = tiny_learner(family, torch.float32)
    narrow.model.load_state_dict(weights)
    assert cosine(designer_gradient(narrow, alignment, estimator), wide) >= 0.9999


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_bfloat16_learner_against_float64(family, alignment):
    """The suffix and S are taken up to float32; what is left of the error is the prefix in
    bfloat16.
    """
    narrow = tiny_learner(family, torch.bfloat16)
    wide = tiny_learner(family, torch.float64)
    wide.model.load_state_dict(narrow.model.state_dict())
    down = downstream(wide)
    reference = designer_gradient(wide, alignment, "double_backward", down)
    narrow_down = {name: piece.float() for name, piece in down.items()}
    assert (
        cosine(designer_gradient(narrow, alignment, "central_difference", narrow_down), reference)
        >= 0.99
    )


def test_value_by_hand():
    """L(w; q) = -sum_k q_k log softmax(w x)_k has grad_w L = (p - q) x (for sum q = 1), so V = <u,
    (p - q) x>.
    """
    weight = torch.tensor([[0.2], [-0.4], [0.1]], dtype=torch.float64)
    x, u = 1.7, torch.tensor([[0.3], [-0.2], [0.5]], dtype=torch.float64)
    q = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    p = torch.softmax(weight[:, 0] * x, dim=0)
    value = float((u[:, 0] * (p - q) * x).sum())
    slope = -(u[:, 0] * x - (p * u[:, 0] * x).sum())  # -d/d eps log p_k
    for name, estimator in ESTIMATORS.items():
        control = q.clone().requires_grad_()
        objective = lambda s, c=control: -(c * torch.log_softmax(s["w"][:, 0] * x, dim=0)).sum()  # noqa: E731
        estimate = estimator(objective, {"w": weight}, {"w": u}, (control,))
        assert float(estimate.value) == pytest.approx(value, rel=1e-8), name
        torch.testing.assert_close(estimate.gradient[0], slope, rtol=1e-7, atol=1e-10)


def test_value_predicts_the_drop_of_the_feedback_loss():
    """eq. 8: one small SGD step on S lowers the feedback loss by eta V."""
    learner = tiny_learner(dtype=torch.float64)
    feedback = tiny_batch(seed=7)
    loss = lambda: float(learner.token_losses(feedback)[0].detach().double().mean())  # noqa: E731
    context = learner.forward(tiny_batch())
    value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS["central_difference"])
    value_estimator.update([downstream(learner)], None, 0.0)
    task = one_hot(context.labels)
    value = float(value_estimator(context, task).value)
    before, eta = loss(), 1e-5
    learner.loss(context, task).backward()
    with torch.no_grad():
        for parameter in learner.aligned.values():
            parameter -= eta * parameter.grad
    assert (before - loss()) / eta == pytest.approx(value, rel=1e-3)


def test_an_aligned_embedding_makes_the_whole_model_the_suffix():
    """S that reaches below the blocks, a tied head included, is still exact."""
    learner = tiny_learner("llama", torch.float64, patterns=["*embed_tokens*", "*layers.2.mlp*"])
    assert learner.suffix.whole
    reference = designer_gradient(learner, "dot", "double_backward")
    assert relative_error(designer_gradient(learner, "dot", "central_difference"), reference) < 1e-5


def test_a_kernel_without_second_derivatives_is_refused_by_name():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    control = torch.ones(3, requires_grad=True)
    with pytest.raises(EstimatorUnsupported, match="central_difference"):
        double_backward(
            lambda s: (Once.apply(s["w"]) * control).sum(),
            {"w": torch.ones(3)},
            {"w": torch.ones(3)},
            (control,),
        )
    estimate = ESTIMATORS["central_difference"](
        lambda s: (Once.apply(s["w"]) * control).sum(),
        {"w": torch.ones(3)},
        {"w": torch.ones(3)},
        (control,),
    )
    assert float(estimate.value) == pytest.approx(6, rel=1e-3)
