"""One step: the burn-in, several batches as one, what is not finite."""

import pytest
import torch

from tests.designers import of_every_kind
from tests.run.test_train import tiny_recipe, trained, weights_hash
from vpretrain.language import Language
from vpretrain.language.steering.arms import ARMS
from vpretrain.method.accumulation import next_batches
from vpretrain.run.build import new_step
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import Fault


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


def test_burn_in_moves_the_optimizer_and_not_the_learner(materials):
    recipe = tiny_recipe("arm=closed_form", "learner.weight_decay=0.1")
    parts = Language().build(recipe, materials)
    before, step = weights_hash(parts), new_step(recipe, parts)
    for _ in range(3):
        step(next_batches(parts.stream, 1), 0.0)
    assert weights_hash(parts) == before
    assert all(state["step"] == 3 for state in step.optimizer.state.values())


def test_a_step_that_goes_on_keeps_the_settings_of_its_own_recipe(materials):
    """Else accepted changes of weight decay or betas would be listed and do nothing."""

    def step_of(*overrides):
        recipe = tiny_recipe("arm=onehot", *overrides)
        parts = Language().build(recipe, materials)
        return parts, new_step(recipe, parts)

    parts, before = step_of("learner.weight_decay=0.1")
    before(next_batches(parts.stream, 1), 1e-3)
    _, after = step_of("learner.weight_decay=0.3", "learner.betas=[0.8, 0.9]")
    after.load_state_dict(before.state_dict())
    (group,) = after.optimizer.param_groups
    assert (group["weight_decay"], tuple(group["betas"])) == (0.3, (0.8, 0.9))
    for mine, its in zip(after.parameters, before.parameters, strict=True):
        for name, moment in before.optimizer.state[its].items():
            assert torch.equal(after.optimizer.state[mine][name], moment)


def test_meta_period_sets_how_often_feedback_is_heard(materials):
    _, result = trained(materials, "arm=closed_form", "value.meta_period=3", "budget.steps=7")
    assert [record["step"] for record in result.history if "gain" in record] == [1, 4, 7]


@pytest.mark.parametrize("arm", ["onehot", "token_weights"])
def test_several_batches_make_the_step_of_one_large_one(materials, arm):
    """Two of two windows against one of four: the same documents, the same step, in whatever order
    they are added up.
    """
    small = (
        "data.batch_size=2",
        "learner.accumulate=2",
        "value.meta_period=9",
        "value.settle_steps=0",
        "budget.steps=1",
    )
    large = ("data.batch_size=4", "value.meta_period=9", "value.settle_steps=0", "budget.steps=1")
    # Closed gate: what a designer makes of values in standard deviations over the batch does depend
    # on the batch.
    results = []
    for overrides in (small, large):
        recipe = tiny_recipe(f"arm={arm}", *of_every_kind(ARMS, tilt=0), *overrides)
        parts = Language().build(recipe, materials)
        result = train(Run(recipe, parts, step0={}))
        results.append(
            (result.spent.tokens, result.history[0], dict(parts.learner.model.named_parameters()))
        )
    (tokens, record, weights), (tokens_of_one, record_of_one, weights_of_one) = results
    assert tokens == tokens_of_one
    for key in ("loss", "gradient_norm"):
        assert record[key] == pytest.approx(record_of_one[key], rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, weights_of_one[name], rtol=1e-3, atol=2e-5)


def test_a_non_finite_loss_stops_before_the_step(materials):
    recipe = tiny_recipe("arm=onehot")
    parts = Language().build(recipe, materials)
    step = new_step(recipe, parts)
    with torch.no_grad():
        parts.learner.model.lm_head.weight[0, 0] = float("nan")
    before = weights_hash(parts)
    with pytest.raises(Fault, match="not taken"):
        step(next_batches(parts.stream, 1), 1e-2)
    assert weights_hash(parts) == before
