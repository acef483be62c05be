"""The value of weights and context masks by every estimator."""

import pytest
import torch
from transformers import IJepaConfig, IJepaModel

from tests.vision.ijepa.small_learner import ENCODERS, SIZES, Batch, images, some_task, tiny_learner
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.vision.ijepa.blocks import BlockSettings
from vpretrain.vision.ijepa.learner import IJepaLearner, IJepaTask, baseline_task
from vpretrain.vision.ijepa.predictor import Predictor


def direction(learner, seed=7):
    """Some vector over S, the same for every learner of a layout."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)
        for name, p in learner.aligned.items()
    }


def appraised(learner, estimator, alignment="dot", task=None):
    """Value and its gradient at some task, float64."""
    context = learner.forward(Batch(images()))
    value_estimator = ValueEstimator(
        learner, Alignment(alignment, smoothness=2.0), ESTIMATORS[estimator]
    )
    value_estimator.update([direction(learner)], None, step_size=0.1)
    estimate = value_estimator(context, task or some_task(context))
    return float(estimate.value), *(gradient.double() for gradient in estimate.gradient)


def close(a, b, tolerance):
    return float((a - b).norm() / b.norm()) < tolerance


@pytest.mark.parametrize("family", sorted(ENCODERS))
@pytest.mark.parametrize("aligned_blocks", [1, 2])
def test_the_objective_is_the_loss_as_a_function_of_the_aligned_parameters(family, aligned_blocks):
    """Value and gradient at S, and after S has moved."""
    learner = tiny_learner(family, aligned_blocks=aligned_blocks)
    context = learner.forward(Batch(images()))
    task = some_task(context)
    objective = learner.objective(context, task)
    point = {name: p.detach().clone().requires_grad_() for name, p in learner.aligned.items()}
    loss = objective.loss(point, objective.inputs)
    full = learner.loss(context, task)
    torch.testing.assert_close(loss, full, rtol=1e-12, atol=0)
    theirs = torch.autograd.grad(full, list(learner.aligned.values()))
    for mine, expected in zip(torch.autograd.grad(loss, list(point.values())), theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        for name, u in direction(learner).items():
            learner.aligned[name].add_(u, alpha=0.1)
        moved = {name: p.clone() for name, p in learner.aligned.items()}
        height = objective.loss(moved, objective.inputs)
        assert (height - full).abs() > 1e-4
        torch.testing.assert_close(height, learner.loss(context, task), rtol=1e-12, atol=0)


def test_aligned_parameters_may_be_wider_than_the_learner():
    learner = tiny_learner(dtype=torch.float32)
    context = learner.forward(Batch(images()))
    objective = learner.objective(context, baseline_task(context))
    wide = objective.loss(
        {name: p.detach().double() for name, p in learner.aligned.items()}, objective.inputs
    )
    assert wide.dtype == torch.float64
    torch.testing.assert_close(
        wide.float(), learner.loss(context, baseline_task(context)), rtol=1e-5, atol=0
    )


def test_the_aligned_parameters_are_the_last_blocks_and_the_final_norm():
    prefixes = {name.rsplit(".", 1)[0] for name in tiny_learner(aligned_blocks=1).aligned}
    assert {p for p in prefixes if "layers.1" not in p} == {"encoder.layernorm"}
    assert len(tiny_learner(aligned_blocks=1).aligned) == 16 + 2
    assert len(tiny_learner(aligned_blocks=2).aligned) == 2 * 16 + 2


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("aligned_blocks", [1, 2])
@pytest.mark.parametrize("error", ["smooth_l1", "squared"])
def test_value_gradients_against_brute_force(error, aligned_blocks, estimator):
    """``<u, g_S>`` from the learner's own loss, differenced in single controls: no shared code with
    the estimators.

    In small steps: the second derivative of smooth L1 jumps at 1, and a step across a jump would
    see both sides.
    """
    learner = tiny_learner(aligned_blocks=aligned_blocks, error=error)
    context = learner.forward(Batch(images()))
    task, u = some_task(context), direction(learner)

    def value(controls):
        gradients = torch.autograd.grad(
            learner.loss(context, IJepaTask(*controls)),
            list(learner.aligned.values()),
            retain_graph=True,
        )
        return sum(float((a * b).sum()) for a, b in zip(u.values(), gradients, strict=True))

    result, *gradients = appraised(learner, estimator, task=task)
    assert result == pytest.approx(value(task.controls()), rel=1e-5)
    for which, gradient in enumerate(gradients):
        assert gradient.shape == task.controls()[which].shape
        picks = gradient.abs().flatten().topk(6).indices.tolist()
        for pick in picks:
            ends = []
            for sign in (1e-6, -1e-6):
                controls = [c.clone() for c in task.controls()]
                controls[which].view(-1)[pick] += sign
                ends.append(value(controls))
            assert float(gradient.flatten()[pick]) == pytest.approx(
                (ends[0] - ends[1]) / 2e-6, rel=1e-5
            ), pick


@pytest.mark.parametrize("error", ["smooth_l1", "squared"])
@pytest.mark.parametrize("alignment", ["dot", "cosine", "lower_bound"])
def test_float64_estimators_agree(alignment, error):
    learner = tiny_learner(error=error)
    reference = appraised(learner, "double_backward", alignment)
    for estimator, tolerance in (("forward_mode", 1e-6), ("central_difference", 1e-5)):
        result = appraised(learner, estimator, alignment)
        assert result[0] == pytest.approx(reference[0], rel=tolerance)
        assert close(result[1], reference[1], tolerance) and close(
            result[2], reference[2], tolerance
        )


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.9999), (torch.bfloat16, 0.99)])
def test_narrow_central_difference_against_float64(dtype, least):
    """The suffix is valued in float32 even if the learner is in bfloat16; what is left is the
    prefix.
    """
    narrow, wide = tiny_learner(dtype=dtype), tiny_learner()
    for one, other in ((wide.model, narrow.model), (wide.target_encoder, narrow.target_encoder)):
        one.load_state_dict(other.state_dict())
    for result, reference in zip(
        appraised(narrow, "central_difference")[1:],
        appraised(wide, "double_backward")[1:],
        strict=True,
    ):
        assert float(torch.cosine_similarity(result.flatten(), reference.flatten(), dim=0)) >= least


def test_a_mask_over_patches_that_are_no_context_is_worth_nothing():
    learner = tiny_learner()
    context = learner.forward(Batch(images()))
    _, _, gradient = appraised(learner, "central_difference")
    seen = torch.zeros(gradient.shape, dtype=torch.bool).scatter(1, context.blocks.context, True)
    assert (gradient[~seen] == 0).all() and (gradient[seen] != 0).all()


def test_valuing_leaves_the_learner_as_it_was():
    learner = tiny_learner()
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    learner.model.train()
    state = torch.get_rng_state()
    appraised(learner, "central_difference")
    assert all(module.training for module in learner.model.modules())
    assert not learner.target_encoder.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(p, before[name]) and p.grad is None
        for name, p in learner.model.named_parameters()
    )


@pytest.mark.parametrize("aligned_blocks", [1, 2])
def test_values_are_without_dropout(aligned_blocks):
    """Below S and in it: the loss on which a task is valued is that of evaluation mode, to the bit,
    every time.
    """
    torch.manual_seed(0)
    encoder = IJepaModel(
        IJepaConfig(**SIZES, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    )
    predictor = Predictor(32, width=16, depth=1, heads=2, seed=1)
    learner = IJepaLearner(
        encoder, predictor, aligned_blocks=aligned_blocks, blocks=BlockSettings()
    )
    context = learner.forward(Batch(images()))
    learner.model.train()
    point = {name: p.detach() for name, p in learner.aligned.items()}
    objective = learner.objective(context, baseline_task(context))
    valued = objective.loss(point, objective.inputs).detach()
    trained = learner.loss(context, baseline_task(context)).detach()
    learner.model.eval()
    assert torch.equal(valued, learner.loss(context, baseline_task(context)).detach())
    assert not torch.equal(valued, trained)
