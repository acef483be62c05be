"""The central difference measures its step: on a learner whose curvature no fixed step suits, and
where none is good enough."""

import math

import pytest
import torch

from vpretrain.method.directional import (
    EstimatorUnsupported,
    central_difference,
    double_backward,
    forward_mode,
)
from vpretrain.method.estimators import central, one_sided
from vpretrain.method.ways import Exact

SIZE = 64


def curved(sharpness):
    """``L = sum_i c_i exp(k_i s_i) / k_i`` at S = 1 / k: the first coordinate bends ``sharpness``
    times as fast as its size suggests, as a few coordinates of pretrained models do."""
    bend = torch.ones(SIZE)
    bend[0] = sharpness
    controls = torch.ones(SIZE).requires_grad_()

    def loss(parameters):
        return (controls * torch.exp(bend * parameters["w"]) / bend).double().sum()

    parameters = {"w": torch.ones(SIZE) / bend}
    return loss, parameters, controls


def error(estimate, exact):
    return float((estimate.gradient[0] - exact.gradient[0]).norm() / exact.gradient[0].norm())


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("spread", [False, True])
def test_the_step_that_is_measured_suits_model_and_direction(sharpness, spread):
    loss, parameters, controls = curved(sharpness)
    direction = {"w": torch.ones(SIZE) if spread else torch.eye(SIZE)[0]}
    exact = double_backward(loss, parameters, direction, [controls])
    measured = central()
    result = measured(loss, parameters, direction, [controls])
    assert error(result, exact) <= 1e-3 and not isinstance(measured.way, Exact)
    assert float(result.value) == pytest.approx(float(exact.value), rel=1e-3)
    assert error(result, exact) <= 3 * measured.way.step.error + 1e-4, (
        "the error that it reports is honest"
    )


def test_one_fixed_step_does_not():
    loss, parameters, controls = curved(1e3)
    direction = {"w": torch.eye(SIZE)[0]}
    exact = double_backward(loss, parameters, direction, [controls])
    assert error(central_difference(loss, parameters, direction, [controls], 1e-3), exact) > 0.05


def test_where_no_step_is_good_enough_another_estimator_takes_over(caplog):
    """A loss whose rounding drowns every difference in float32."""
    controls = torch.ones(4).requires_grad_()

    def loss(parameters):
        return 1e7 + (controls * parameters["w"].sin()).sum()

    parameters, direction = {"w": torch.ones(4)}, {"w": torch.ones(4)}

    def rough(parameters):
        return (controls * (parameters["w"] + 1e-3 * torch.sin(1e5 * parameters["w"]))).sum()

    estimator = central()
    result = estimator(rough, parameters, direction, [controls])
    exact = forward_mode(rough, parameters, direction, [controls])
    assert isinstance(estimator.way, Exact) and torch.equal(result.gradient[0], exact.gradient[0])
    assert "forward_mode" in caplog.text and estimator.metrics() == {}
    smooth = central()
    smooth(loss, parameters, direction, [controls])
    assert not isinstance(smooth.way, Exact), "the controls' gradient does not see a constant"


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("can't allocate memory")])
def test_where_the_other_estimator_does_not_fit_into_memory_the_best_step_stays(fault):
    def fallback(*given):
        raise fault

    controls = torch.ones(4).requires_grad_()

    def rough(parameters):
        return (controls * (parameters["w"] + 1e-3 * torch.sin(1e5 * parameters["w"]))).sum()

    estimator = central(fallback)
    given = rough, {"w": torch.ones(4)}, {"w": torch.ones(4)}, [controls]
    assert estimator(*given).gradient[0].isfinite().all()
    assert not isinstance(estimator.way, Exact) and estimator.way.step.size

    def broken(*given):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        central(broken)(*given)


def test_a_step_whose_estimate_overflows_or_drowns_is_never_the_best():
    controls = torch.ones(2).requires_grad_()

    def loss(parameters):
        moved = (parameters["w"] - 1).abs().max()
        if moved > 2e-3:  # the largest step overflows
            return (controls * torch.inf).sum() * 0
        if moved < 8e-6:  # the smallest does not show
            return (controls * torch.ones(2)).sum()
        return (controls * parameters["w"]).sum()

    estimator = central(None)
    result = estimator(loss, {"w": torch.ones(2)}, {"w": torch.ones(2)}, [controls])
    assert result.gradient[0].tolist() == pytest.approx([1, 1], rel=1e-3)
    assert 2e-5 < estimator.way.step.size < 2e-3 and 0 < estimator.way.step.error < 1e-3


def test_a_run_that_goes_on_keeps_its_step(monkeypatch):
    loss, parameters, controls = curved(1e2)
    direction = {"w": torch.eye(SIZE)[0]}
    first, fresh = central(), central()
    first(loss, parameters, direction, [controls])
    fresh.load_state_dict(first.state_dict())
    one, other = (each(loss, parameters, direction, [controls]) for each in (first, fresh))
    assert (
        torch.equal(one.gradient[0], other.gradient[0])
        and fresh.way.step.size == first.way.step.size > 0
    )


def test_the_check_during_a_run_costs_two_passes_and_finds_a_model_that_has_changed(monkeypatch):
    monkeypatch.setattr("vpretrain.method.ways.CHECK_PERIOD", 4)
    passes = 0
    loss, parameters, controls = curved(1.0)

    def counted(point):
        nonlocal passes
        passes += 1
        return loss(point)

    direction = {"w": torch.eye(SIZE)[0]}
    estimator = central()
    for _ in range(4):
        estimator(counted, parameters, direction, [controls])
    before, passes = estimator.way.step.size, 0
    estimator(counted, parameters, direction, [controls])
    assert passes == 4 and estimator.way.step.size == before, (
        "the estimate, and one along a smaller step"
    )
    for _ in range(3):
        estimator(counted, parameters, direction, [controls])
    loss, parameters, controls = curved(1e3)
    estimator(counted, parameters, direction, [controls])
    assert (
        estimator.way.step.size < before
        and estimator.way.step.error < 0.01
        and math.isfinite(estimator.way.step.error)
    )


def test_central_difference_where_the_parameters_are_zero():
    """LoRA's B before its first step."""
    control = torch.tensor([2.0], requires_grad=True)

    def loss(parameters):
        return (control * parameters["b"]).sum() + parameters["b"].square().sum()

    result = central_difference(loss, {"b": torch.zeros(1)}, {"b": torch.tensor([3.0])}, [control])
    assert float(result.value) == pytest.approx(6.0, rel=1e-5)
    assert result.gradient[0].tolist() == pytest.approx([3.0], rel=1e-5)


@pytest.mark.parametrize("useless", [0.0, math.nan])
def test_a_direction_that_says_nothing_settles_no_step(useless):
    loss, parameters, controls = curved(300.0)
    estimator = central()
    estimator(loss, parameters, {"w": torch.full((SIZE,), useless)}, [controls])
    assert not estimator.way.step.size
    direction = {"w": torch.eye(SIZE)[0]}
    exact = double_backward(loss, parameters, direction, [controls])
    assert error(estimator(loss, parameters, direction, [controls]), exact) <= 1e-3


def one_sided_along(sharpness, direction):
    """What a one-sided difference comes to on the curved learner, its class, the exact value, and
    how often the loss was asked for beside the learner's own pass."""
    loss, parameters, controls = curved(sharpness)
    asked = []

    def counted(point):
        asked.append(point)
        return loss(point)

    measured = one_sided()
    given = counted, parameters, direction, [controls], lambda: loss(parameters)
    measured(*given)
    asked.clear()
    result = measured(*given)
    return result, measured, double_backward(loss, parameters, direction, [controls]), len(asked)


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 300.0])
def test_one_sided_differences_take_one_pass_and_are_one_percent_off_at_most(sharpness):
    result, measured, exact, passes = one_sided_along(sharpness, {"w": torch.ones(SIZE)})
    assert passes == 1 and measured.way.name != "central_difference"
    assert error(result, exact) <= 1e-2
    assert float(result.value) == pytest.approx(float(exact.value), rel=1e-2)
    assert error(result, exact) <= 3 * measured.way.step.error + 1e-3, (
        "the error that it reports is honest"
    )


def test_where_one_side_is_not_enough_there_are_two():
    """Curvature so strong that the step it wants drowns in rounding."""
    controls = torch.ones(4).requires_grad_()

    def loss(parameters):
        return (controls * torch.exp(1e4 * (parameters["w"] - 1))).sum()

    parameters, direction = {"w": torch.ones(4)}, {"w": torch.ones(4)}
    measured = one_sided()
    result = measured(loss, parameters, direction, [controls], lambda: loss(parameters))
    assert measured.way.name == "central_difference"
    exact = double_backward(loss, parameters, direction, [controls])
    assert error(result, exact) <= 2e-2
    again = one_sided()
    again.load_state_dict(measured.state_dict())
    assert again.way.name == "central_difference" and again.way.step.size == measured.way.step.size


def test_without_the_learners_own_pass_differences_are_central():
    loss, parameters, controls = curved(30.0)
    direction = {"w": torch.ones(SIZE)}
    one, other = (
        each(loss, parameters, direction, [controls]) for each in (one_sided(), central())
    )
    assert torch.equal(one.gradient[0], other.gradient[0])


def test_a_step_measured_for_one_side_does_not_serve_two():
    """A designer may value one task beside the learner's pass and another without it."""
    loss, parameters, controls = curved(30.0)
    given = loss, parameters, {"w": torch.ones(SIZE)}, [controls]
    mixed, two_sided = one_sided(), central()
    mixed(*given, lambda: loss(parameters))
    assert mixed.way.name != "central_difference"
    first, again = mixed(*given), mixed(*given, lambda: loss(parameters))
    exact = two_sided(*given)
    assert mixed.way.step.size == two_sided.way.step.size
    assert torch.equal(first.gradient[0], exact.gradient[0])
    assert torch.equal(again.gradient[0], exact.gradient[0])


def narrow_estimate(sharpness, narrow=None):
    """An estimate beside a learner in bfloat16, and the points at which its loss in float32 was
    asked for after the first check."""
    loss, parameters, controls = curved(sharpness)
    asked = []

    def counted(point):
        asked.append(point)
        return loss(point)

    def rounded(point):
        return loss({name: value.bfloat16() for name, value in point.items()})

    measured, direction = one_sided(), {"w": torch.ones(SIZE)}
    given = counted, parameters, direction, [controls], None, narrow or rounded
    measured(*given)
    asked.clear()
    exact = double_backward(loss, parameters, direction, [controls])
    return measured(*given), measured, exact, asked


def test_a_learner_in_a_narrow_dtype_is_valued_by_forward_mode_in_that_dtype():
    result, measured, exact, asked = narrow_estimate(30.0)
    assert measured.way.name != "central_difference" and not asked
    assert 1e-4 <= error(result, exact) <= 2e-2, "rounded, and no more"
    assert measured.metrics()["estimator_error"] == pytest.approx(error(result, exact), rel=0.1)
    again = one_sided()
    again.load_state_dict(measured.state_dict())
    assert (
        again.way.step.calls == measured.way.step.calls and again.way.name != "central_difference"
    )


def off_by_a_tenth(point):
    loss, _, _ = curved(30.0)
    return 1.1 * loss(point)


def without_forward_mode(point):
    raise NotImplementedError("no forward-mode derivative")


@pytest.mark.parametrize("narrow", [off_by_a_tenth, without_forward_mode])
def test_where_the_narrow_dtype_does_not_serve_differences_are_central(narrow):
    result, measured, exact, asked = narrow_estimate(30.0, narrow)
    assert measured.way.name == "central_difference" and len(asked) == 2
    assert error(result, exact) <= 1e-3


def test_the_learners_own_reason_for_no_forward_mode_is_told():
    _, parameters, controls = curved(30.0)

    def coarse(point):
        raise EstimatorUnsupported("logits as a whole would be too coarse")

    with pytest.raises(EstimatorUnsupported) as caught:
        forward_mode(coarse, parameters, {"w": torch.ones(SIZE)}, [controls])
    assert str(caught.value) == "logits as a whole would be too coarse"


def test_a_batch_that_is_not_finite_does_not_decide_how_values_are_taken():
    loss, parameters, controls = curved(30.0)
    measured, direction = one_sided(), {"w": torch.ones(SIZE)}

    def broken(point):
        return loss(point) * math.nan

    measured(broken, parameters, direction, [controls], None, broken)
    assert measured.way.name != "central_difference" and measured.way.step.calls == 0
    measured(loss, parameters, direction, [controls], None, loss)
    assert measured.way.name != "central_difference" and measured.way.step.calls == 1
