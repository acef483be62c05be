"""The roles at their simplest: values that follow from hand, batches that resume, feedback that
leaves the learner alone.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from vpretrain import ESTIMATORS, Alignment, ValueEstimator
from vpretrain.method.simple import (
    BaselineDesigner,
    LossFeedback,
    WholeLearner,
    halves,
)
from vpretrain.run.scores import score
from vpretrain.system.errors import UserError


@dataclass(frozen=True)
class Weights:
    rows: torch.Tensor

    def controls(self):
        return (self.rows,)

    def with_controls(self, controls):
        return replace(self, rows=controls[0])


def weighted(model, batch, task):
    x, y = batch
    return (task.rows * (model(x) - y).squeeze(1) ** 2).mean()


@pytest.fixture
def learner():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1))
    return WholeLearner(model, weighted, aligned=["3.*"])


BATCH = (torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.arange(5.0)[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_rows_weight_is_worth_the_inner_product_with_its_own_gradient(learner, estimator, dtype):
    """``dL/dw_i`` is row i's loss over n, so that ``dV/dw_i = <u, grad loss_i> / n``, without
    dropout.
    """
    torch.manual_seed(2)
    down = {name: torch.randn_like(p) for name, p in learner.aligned.items()}
    value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS[estimator])
    value_estimator.update([down], None, 0.0)
    result = value_estimator(learner.forward(BATCH), Weights(torch.ones(5, dtype=dtype))).gradient[
        0
    ]
    learner.model.eval()
    expected = []
    for row in ((learner.model(BATCH[0]) - BATCH[1]).squeeze(1) ** 2 / 5).unbind():
        gradients = torch.autograd.grad(row, list(learner.aligned.values()), retain_graph=True)
        expected.append(
            sum(float((u * g).sum()) for u, g in zip(down.values(), gradients, strict=True))
        )
    torch.testing.assert_close(
        result.double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-3, atol=1e-4
    )


def test_a_learner_in_a_narrow_dtype_is_valued_in_float32(learner):
    learner.model.bfloat16()
    down = {name: torch.ones_like(p, dtype=torch.float32) for name, p in learner.aligned.items()}
    value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS["central_difference"])
    value_estimator.update([down], None, 0.0)
    gradient = value_estimator(BATCH, Weights(torch.ones(5))).gradient[0]
    assert (
        gradient.dtype == torch.float32 and gradient.isfinite().all() and gradient.abs().max() > 0
    )


class Spare(nn.Linear):
    """A linear module that does not read all of its parameters."""

    def __init__(self):
        super().__init__(3, 1)
        self.spare = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("alignment", ["dot", "cosine", "lower_bound"])
def test_a_parameter_that_the_loss_does_not_depend_on_adds_no_value(estimator, alignment):
    torch.manual_seed(0)
    model, values = Spare().double(), []
    for aligned in (["weight", "bias"], ["*"]):
        learner = WholeLearner(model, weighted, aligned)
        down = {name: torch.ones_like(p) for name, p in learner.aligned.items()}
        if "spare" in down:
            down["spare"].zero_()  # else it would count in the norm of a cosine
        value_of = ValueEstimator(learner, Alignment(alignment), ESTIMATORS[estimator])
        value_of.update([down], None, 0.1)
        batch = tuple(each.double() for each in BATCH)
        values.append(value_of(batch, Weights(torch.ones(5, dtype=torch.float64))))
    assert float(values[0].value) == pytest.approx(float(values[1].value))
    torch.testing.assert_close(values[0].gradient, values[1].gradient)


def test_a_pattern_that_fits_nothing_is_refused(learner):
    with pytest.raises(UserError, match=r"head\.\*"):
        WholeLearner(learner.model, weighted, aligned=["3.*", "head.*"])


def test_feedback_touches_neither_gradients_nor_random_numbers(learner):
    feedback = LossFeedback(
        halves(10, 2, "key", lambda places: torch.tensor(places)[:, None].float().expand(-1, 3)),
        lambda rows: learner.model(rows).square().mean(),
    )
    before = torch.get_rng_state()
    gradients = feedback.gradients(learner)
    assert len(gradients) == 2 and gradients[0].keys() == learner.aligned.keys()
    assert not torch.equal(gradients[0]["3.weight"], gradients[1]["3.weight"])
    assert all(p.grad is None for p in learner.model.parameters()) and learner.model.training
    assert torch.equal(torch.get_rng_state(), before), "dropout was drawn"
    state, then = feedback.state_dict(), feedback.gradients(learner)
    feedback.load_state_dict(state)
    assert torch.equal(feedback.gradients(learner)[0]["3.weight"], then[0]["3.weight"])


def test_a_score_is_the_mean_of_its_items():
    result = score(torch.tensor([0.0, 1.0, 1.0, 0.0]), higher_is_better=True)
    assert (result.value, result.n, result.items) == (0.5, 4, (0.0, 1.0, 1.0, 0.0))
    assert (
        result.stderr == pytest.approx((1 / 3) ** 0.5 / 2)
        and score(torch.ones(1), higher_is_better=True).stderr == 0
    )


def test_plain_does_not_listen():
    assert (
        not BaselineDesigner(surface=None).uses_feedback
        and BaselineDesigner(surface=None).state_dict() == {}
    )
