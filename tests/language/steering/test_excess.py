"""Weights by excess loss, and what of them is kept."""

import pytest
import torch

from tests.language.conftest import tiny_batch, tiny_learner
from tests.run.test_train import tiny_recipe, trained
from vpretrain.language import Language
from vpretrain.language.steering.excess import PricedExcessLoss
from vpretrain.language.steering.reference import Reference
from vpretrain.language.steering.rules import TokenWeights
from vpretrain.method.price import SpreadPrice
from vpretrain.method.roles import Estimate, ValueFunction
from vpretrain.system.errors import UserError


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


class Values(ValueFunction):
    """Values every token at a multiple of its weight's deviation, and the plain task at a sum."""

    def __init__(self, full, plain, gain):
        moved = full - 1
        self.values = gain * moved / moved.square().sum() + plain / len(full)

    def __call__(self, context, task):
        return Estimate(torch.zeros(()), (self.values[:, None],))

    def each(self, context, task):
        return [self(context, task)]


def designed(tilt=0.4):
    learner, other, batch = tiny_learner(), tiny_learner(seed=1), tiny_batch()
    designer = PricedExcessLoss(Reference(other), TokenWeights(tilt), SpreadPrice())
    excess = learner.token_losses(batch)[0] - other.token_losses(batch)[0]
    return designer, learner.forward(batch), excess.detach()


def test_weights_rise_with_the_excess_loss():
    designer, context, excess = designed()
    weights = designer.make_task(context, None).mass[:, 0]
    z = ((excess - excess.mean()) / excess.std(correction=0)).clamp(-3, 3)
    expected = (1 + 0.4 * z).clamp_min(0)
    torch.testing.assert_close(weights, expected / expected.mean())


@pytest.mark.parametrize(("plain", "gain", "kept"), [(-1.0, 1.0, 1.0), (1.0, -1.0, 0.0)])
def test_a_meta_step_decides_how_much_of_them_is_kept(plain, gain, kept):
    designer, context, _ = designed()
    full = designer.make_task(context, None).mass[:, 0]
    learned = designer.learn(context, Values(full, plain, gain))
    assert learned.metrics["value_baseline"] == pytest.approx(plain, rel=1e-4)
    assert learned.metrics["gain"] == pytest.approx(gain, rel=1e-4)
    expected = full if kept else torch.ones_like(full)
    torch.testing.assert_close(learned.task.mass[:, 0], expected)
    torch.testing.assert_close(designer.make_task(context, None).mass, learned.task.mass)
    restored = designed()[0]
    restored.load_state_dict(designer.state_dict())
    torch.testing.assert_close(restored.make_task(context, None).mass, learned.task.mass)


def test_the_reference_is_trained_first_and_figures_are_logged(materials):
    steps = ["arm=excess_weights", "budget.steps=2", "designer.reference_epochs=1"]
    first = trained(materials, *steps)[1].history[0]
    assert first["prepared_tokens"] > 0
    assert 0 <= first["tilt_fraction"] <= 1 and {"gain", "weight_spread"} <= first.keys()


def test_another_direction_is_no_control_of_a_designer_that_reads_the_rows(materials):
    kind = ("designer.kind=excess_weights",)
    for words in (["arm=reversed_feedback"], ["arm=rho1", "feedback.control=random"]):
        with pytest.raises(UserError, match="reads the feedback rows themselves"):
            Language().build(tiny_recipe(*words, *kind), materials)
    right, wrong = (
        Language().build(tiny_recipe(arm, *kind), materials).designer.reference.documents
        for arm in ("arm=excess_weights", "arm=shuffled_feedback")
    )
    assert sum(a.ids != b.ids for a, b in zip(right, wrong, strict=True)) > len(right) / 2
