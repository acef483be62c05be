"""The value of learned views and targets by every estimator."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vision.dino.small_learner import (
    KINDS,
    PLAIN_TEACHER,
    cosine,
    crop,
    direction,
    learner,
    masked,
    naive,
    narrow_crop,
    soft,
    value_estimator,
)
from vpretrain.method import vectors
from vpretrain.method.directional import ESTIMATORS
from vpretrain.vision.dino.learner import Context, DinoSettings
from vpretrain.vision.steering.views import BaselineViews


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", [masked, soft])
def test_every_estimator_gives_the_naive_double_backward(
    kind: str, surface: Callable[[Context], Any]
) -> None:
    made = learner(kind)
    context = made.forward(0)
    task = surface(context)
    value, gradient = naive(made, context, task)
    for estimator in ESTIMATORS:
        result = value_estimator(made, estimator)(context, task)
        tolerance = 1e-5 if estimator == "central_difference" else 1e-8
        assert float(result.value) == pytest.approx(float(value), rel=tolerance), estimator
        assert torch.allclose(
            result.gradient[0],
            gradient,
            rtol=tolerance,
            atol=tolerance * float(gradient.abs().max()),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_in_the_mask_is_that_of_brute_finite_differences(kind: str) -> None:
    """``<u, g_S(mu)>`` from plain first-order gradients of the loss, at masks moved to
    both sides.
    """
    made = learner(kind)
    task = masked(made.forward(0))
    u, step = direction(made), 1e-5

    def value(mask: Tensor) -> float:
        loss = made.loss(made.forward(0), task.with_controls((mask,)))
        gradients = torch.autograd.grad(loss, list(made.aligned.values()))
        return float(sum((u[n] * g).sum() for n, g in zip(made.aligned, gradients, strict=True)))

    estimates = {name: value_estimator(made, name)(made.forward(0), task) for name in ESTIMATORS}
    for seed in range(2):
        move = torch.randn(
            task.mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        slope = (value(task.mask + step * move) - value(task.mask - step * move)) / (2 * step)
        for name, estimate in estimates.items():
            assert float((estimate.gradient[0] * move).sum()) == pytest.approx(slope, rel=1e-4), (
                name
            )
    for name, estimate in estimates.items():
        assert float(estimate.value) == pytest.approx(value(task.mask), rel=1e-5), name


def test_all_parameters_as_s_cut_at_the_pixels() -> None:
    made = learner(blocks="all")
    context = made.forward(0)
    task = masked(context)
    value, gradient = naive(made, context, task)
    for estimator in ESTIMATORS:
        result = value_estimator(made, estimator)(made.forward(0), task)
        assert float(result.value) == pytest.approx(float(value), rel=1e-4)
        assert cosine(result.gradient[0], gradient) > 1 - 1e-8
    assert torch.isfinite(
        made.loss(made.forward(0), BaselineViews())
    )  # no rotary cache holds a dual number now


@pytest.mark.parametrize("alignment", ["cosine", "lower_bound"])
def test_alignments_that_need_the_whole_gradient_get_it(alignment: Any) -> None:
    """Their direction depends on ``g_pre``, the pairs with local views among it."""
    made = learner()
    context = made.forward(0)
    task = masked(context)
    control = task.mask.clone().requires_grad_()
    u = direction(made)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = made.loss(context, task.with_controls((control,)))
        pre = vectors.named(
            made.aligned, torch.autograd.grad(loss, list(made.aligned.values()), create_graph=True)
        )
        product, square = vectors.inner(u, pre), vectors.inner(pre, pre)
        scores = {
            "cosine": product / (vectors.norm(u) * square.sqrt()),
            "lower_bound": product - 0.05 * square,
        }
        (gradient,) = torch.autograd.grad(scores[alignment], control)
    result = value_estimator(made, "double_backward", alignment)(context, task)
    assert float(result.value) == pytest.approx(float(scores[alignment].detach()), rel=1e-8)
    assert torch.allclose(
        result.gradient[0], gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max())
    )


def test_without_local_views_the_gradient_stays_and_the_gain_too() -> None:
    result = {}
    for held in (True, False):
        made = learner(settings=PLAIN_TEACHER.model_copy(update={"local_views_in_value": held}))
        context = made.forward(0)
        task = masked(context)
        value_of = value_estimator(made, "double_backward")
        plain = value_of(context, task.with_controls((torch.ones_like(task.mask),)))
        result[held] = (value_of(context, task), plain)
    assert torch.allclose(result[True][0].gradient[0], result[False][0].gradient[0], rtol=1e-9)
    task, (value, _) = soft(context), naive(made, context, soft(context))
    assert float(value_of(context, task).value) == pytest.approx(
        float(value), rel=1e-9
    )  # targets speak to all views
    gains = [float(steered.value - plain.value) for steered, plain in result.values()]
    assert gains[0] == pytest.approx(gains[1], rel=1e-9)
    assert float(result[True][0].value) != pytest.approx(float(result[False][0].value), rel=1e-3)


def test_the_value_under_a_teacher_of_learned_views_holds_its_targets_still() -> None:
    made = learner(settings=DinoSettings(teacher_views="learned"))
    context = made.forward(0)
    task = masked(context)
    value, gradient = naive(made, context, task)
    result = value_estimator(made, "forward_mode")(context, task)
    assert float(result.value) == pytest.approx(float(value), rel=1e-8)
    assert cosine(result.gradient[0], gradient) > 1 - 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", [masked, soft])
def test_central_differences_in_float32_point_where_float64_does(
    kind: str, surface: Callable[[Context], Any]
) -> None:
    exact = learner(kind)
    context = exact.forward(0)
    _, gradient = naive(exact, context, surface(context))
    narrow = learner(kind, dtype=torch.float32, crops=narrow_crop)
    with torch.no_grad():  # the same numbers in both, but for rounding
        narrow.model.load_state_dict(exact.model.state_dict())
        narrow.load_state_dict(exact.state_dict())
    seen = narrow.forward(0)
    result = value_estimator(narrow, "central_difference")(seen, surface(seen))
    assert (
        result.gradient[0].dtype == torch.float32 and cosine(result.gradient[0], gradient) >= 0.9999
    )


def test_a_bfloat16_student_is_valued_in_float32() -> None:
    made = learner(dtype=torch.bfloat16, crops=narrow_crop)
    context = made.forward(0)
    objective = made.objective(
        context, replace(task := masked(context), mask=task.mask.clone().requires_grad_())
    )
    assert objective.inputs[0].dtype == torch.float32
    exact = value_estimator(made, "double_backward")(context, task)
    rough = value_estimator(made, "central_difference")(context, task)
    assert cosine(exact.gradient[0], rough.gradient[0]) > 0.999


def test_valuing_leaves_no_trace() -> None:
    """No dropout, no gradient on any parameter, no draw from the generator, no centre, no change of
    mode.
    """
    made = learner(settings=DinoSettings(), drop_path_rate=0.5, attention_dropout=0.5)
    context = made.forward(0)
    calm = value_estimator(made, "central_difference")(context, masked(context))
    made.model.train()
    context = made.forward(0)
    before = {n: t.clone() for n, t in made.model.state_dict().items()}
    state = torch.get_rng_state()
    result = value_estimator(made, "central_difference")(context, masked(context))
    assert torch.equal(result.gradient[0], calm.gradient[0])
    assert torch.equal(torch.get_rng_state(), state) and made.model.backbone.training
    assert all(p.grad is None and p.requires_grad for p in made.model.parameters())
    assert all(torch.equal(before[n], t) for n, t in made.model.state_dict().items())
    center = made.center.clone()
    made.after_step(1.0)
    assert torch.equal(made.center, center)


def test_two_global_views_are_enough() -> None:
    made = learner(crops=lambda seed: crop(seed, count=2))
    context = made.forward(0)
    task = masked(context)
    value, gradient = naive(made, context, task)
    result = value_estimator(made, "forward_mode")(context, task)
    assert float(result.value) == pytest.approx(float(value), rel=1e-8)
    assert torch.allclose(
        result.gradient[0], gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max())
    )
