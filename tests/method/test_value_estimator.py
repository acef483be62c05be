"""The value of a task: whole batches and parts of them, along each feedback batch and their mean."""

import copy

import pytest
import torch

from tests.method.toy import Context, Regression, Weights, pairs
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.estimators import NAMES
from vpretrain.method.estimators import estimator as named
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system.errors import NonFinite

ALIGNMENTS = ("dot", "optimizer_aware", "cosine", "lower_bound")


@pytest.fixture
def setting():
    learner, context = Regression(), Context(*pairs(torch.Generator().manual_seed(0)))
    draw = torch.Generator().manual_seed(1)
    gradients = [{"weight": torch.randn(1, 3, generator=draw)} for _ in range(2)]
    return learner, context, Weights(torch.rand(16, generator=draw)), gradients


def estimator(learner, name="dot", kind="double_backward"):
    return ValueEstimator(learner, Alignment(name), ESTIMATORS[kind])


def pretraining_gradient(learner, context, task):
    return torch.autograd.grad(learner.loss(context, task), learner.model.weight)[0]


def test_the_value_is_the_inner_product_by_hand(setting):
    learner, context, task, gradients = setting
    value_of = estimator(learner)
    value_of.update(gradients, None, 0.0)
    g_pre = pretraining_gradient(learner, context, task)
    values = [float(each.value) for each in value_of.each(context, task)]
    expected = [float((gradient["weight"] * g_pre).sum()) for gradient in gradients]
    assert values == pytest.approx(expected, rel=1e-5)
    assert float(value_of(context, task).value) == pytest.approx(sum(expected) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_the_gradient_is_that_of_the_value(setting, name, kind):
    """``dV/d controls`` against finite differences of the value itself, in float64."""
    learner, context, task, gradients = setting
    learner.model.double()
    learner.aligned = dict(learner.model.named_parameters())
    context = Context(context.x.double(), context.y.double())
    task = Weights(task.each.double())
    down = {"weight": gradients[0]["weight"].double()}
    value_of = estimator(learner, name, kind)
    value_of.update([down], None, 0.1)
    gradient = value_of(context, task).gradient[0]
    for i in range(3):
        shift = torch.zeros(16, dtype=torch.float64)
        shift[i] = 1e-5
        up, low = (value_of(context, Weights(task.each + s)).value for s in (shift, -shift))
        assert float(gradient[i]) == pytest.approx(float(up - low) / 2e-5, rel=1e-3, abs=1e-8)


def test_the_preconditioner_is_for_the_alignment_that_asks_for_it(setting):
    learner, _, _, gradients = setting
    preconditioner = {"weight": torch.tensor([[1.0, 2.0, 3.0]])}
    plain, aware = estimator(learner), estimator(learner, "optimizer_aware")
    for value_of in (plain, aware):
        value_of.update(gradients[:1], preconditioner, 0.0)
    assert torch.equal(plain.feedback_gradients[0]["weight"], gradients[0]["weight"])
    expected = preconditioner["weight"] * gradients[0]["weight"]
    assert torch.equal(aware.feedback_gradients[0]["weight"], expected)


def test_parts_of_a_batch_have_the_gradients_of_the_whole(setting):
    """A part of fraction f gives the controls of its rows the gradient they have in the batch."""
    learner, context, task, gradients = setting
    value_of = estimator(learner)
    value_of.update(gradients, None, 0.0)
    whole = value_of(context, task).gradient[0]
    for rows in (slice(0, 4), slice(4, 16)):
        part = Context(context.x[rows], context.y[rows])
        fraction = len(part.x) / 16
        gradient = value_of.on_part(fraction)(part, Weights(task.each[rows])).gradient[0]
        torch.testing.assert_close(gradient, whole[rows])


def test_between_meta_steps_the_mean_alone_is_kept(setting):
    learner, context, task, gradients = setting
    value_of = estimator(learner)
    value_of.update(gradients, None, 0.0)
    before = value_of(context, task)
    value_of.keep_mean()
    after = value_of(context, task)
    assert len(value_of.feedback_gradients) == 1
    torch.testing.assert_close(after.gradient[0], before.gradient[0])


def test_neither_learner_nor_its_gradients_are_touched(setting):
    learner, context, task, gradients = setting
    before = copy.deepcopy(learner.model.state_dict())
    value_of = estimator(learner, "cosine", "central_difference")
    value_of.update(gradients, None, 0.0)
    value_of(context, task)
    assert learner.model.weight.grad is None
    assert torch.equal(learner.model.weight, before["weight"])


def test_the_direction_comes_back_with_the_state(setting):
    learner, context, task, gradients = setting
    one, other = estimator(learner), estimator(learner)
    one.update(gradients, None, 0.5)
    other.load_state_dict(one.state_dict())
    assert other.step_size == 0.5
    assert torch.equal(other(context, task).gradient[0], one(context, task).gradient[0])


@pytest.mark.parametrize("saved", NAMES)
@pytest.mark.parametrize("now", NAMES)
def test_a_run_goes_on_under_another_estimator_which_measures_its_own_step(setting, saved, now):
    learner, context, task, gradients = setting
    one, other = (ValueEstimator(learner, Alignment("dot"), named(name)) for name in (saved, now))
    one.update(gradients, None, 0.0)
    expected = one(context, task).gradient[0]  # a step was measured by now
    other.load_state_dict(one.state_dict())
    assert other.estimator.state_dict() == (
        one.estimator.state_dict() if now == saved else named(now).state_dict()
    )
    torch.testing.assert_close(other(context, task).gradient[0], expected, rtol=1e-2, atol=1e-3)


def test_no_designer_learns_from_a_value_that_is_not_finite(setting):
    learner, context, task, gradients = setting
    value_of = estimator(learner)
    value_of.update([gradients[0], {"weight": torch.full((1, 3), torch.nan)}], None, 0.0)
    for each in (value_of.each, value_of.on_part(0.5).each):
        with pytest.raises(NonFinite, match="did not learn"):
            each(context, task)
