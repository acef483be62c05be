"""Counting what a step costs leaves the run that follows as it would have been, bit for bit."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.test_recipes import shrunken
from tests.vision.conftest import SCENES
from tests.vision.test_recipes import shrunken as shrunken_pictures
from vpretrain.method.accumulation import next_batches
from vpretrain.run.build import new_step
from vpretrain.run.flops import count
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.run import Run
from vpretrain.run.train import train

ARMS = {
    "demo-language": (
        "onehot",
        "ascent",
        "field",
        "closed_form",
        "token_weights",
        "random_feedback",
        "feedback_sft",
        "greats_topk",
        "repeat_topk",
    ),
    "demo-vision": ("plain", "ascent", "closed_form", "random_masks", "direct"),
}
IN_FULL = {"field", "random_feedback", "closed_form", "random_masks"}
"""Arms that count as others do; with ``-m slow``."""
CASES = [
    pytest.param(recipe, arm, marks=[pytest.mark.slow] if arm in IN_FULL else [])
    for recipe, arms in ARMS.items()
    for arm in arms
]


@pytest.mark.parametrize(("name", "arm"), CASES)
def test_a_run_is_the_same_whether_its_steps_were_counted_or_not(name, arm):
    shrink = shrunken if name == "demo-language" else shrunken_pictures
    fewer = [] if name == "demo-language" else SCENES
    recipe = shrink(name, *fewer, f"arm={arm}", "value.meta_period=2", "budget.steps=3")
    modality = MODALITIES[recipe.modality]()
    materials = modality.load(recipe)

    def history(counted):
        parts = modality.build(recipe, materials)
        if counted:
            cost = count(new_step(recipe, parts), parts)
            assert cost.meta >= cost.steered > 0.9 * cost.plain > 0
            assert (cost.meta > cost.plain) == parts.designer.uses_feedback
        records = train(Run(recipe, parts, step0={})).history
        last = [p.detach().clone() for p in parts.learner.model.parameters()]
        return [(r["loss"], r["batch"], r["gradient_norm"]) for r in records], last

    before, after = history(False), history(True)
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def test_a_step_of_several_batches_costs_as_many_batches():
    recipe = shrunken("demo-language", "arm=closed_form", "value.meta_period=2")
    modality = MODALITIES[recipe.modality]()
    materials = modality.load(recipe)

    def cost(accumulate, period):
        changed = recipe.model_copy(
            update={"value": recipe.value.model_copy(update={"meta_period": period})}
        )
        parts = modality.build(changed, materials)
        return count(new_step(changed, parts), parts, accumulate)

    one, three = cost(1, 2), cost(3, 2)
    assert three.plain == pytest.approx(3 * one.plain)
    assert three.steered == pytest.approx(3 * one.steered)
    assert three.meta - one.meta == pytest.approx(2 * one.steered)
    assert cost(3, 1) == three  # a period of one changes no step


@pytest.mark.parametrize("arm", ["greats_topk", "repeat_topk"])
def test_a_selector_is_charged_for_every_batch_that_it_values(arm):
    recipe = shrunken("demo-language", f"arm={arm}", "value.meta_period=2", "learner.accumulate=3")
    modality = MODALITIES[recipe.modality]()
    parts = modality.build(recipe, modality.load(recipe))
    cost, step = count(new_step(recipe, parts), parts, 3), new_step(recipe, parts)
    step(next_batches(parts.stream, 3 * parts.designer.draws), 0.0)  # measures the estimator's step
    for meta in (False, True):
        drawn = next_batches(parts.stream, 3 * parts.designer.draws)
        with FlopCounterMode(display=False) as counter:
            assert ("gain" in step(drawn, 0.0)) == meta
        expected = cost.of(meta_due=meta, steers=True)
        assert expected == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_valuing_what_is_drawn_is_charged():
    """Two more passes forward at least: the pool's, beside the step's own."""
    recipe = shrunken("demo-language", "value.meta_period=2")
    modality = MODALITIES[recipe.modality]()
    materials = modality.load(recipe)

    def cost(arm):
        chosen = recipe.model_copy(update={"arm": arm})
        parts = modality.build(chosen, materials)
        return count(new_step(chosen, parts), parts)

    plain, control = cost("onehot").plain, cost("random_selection").steered
    assert control == pytest.approx(plain, rel=0.1)  # other documents, nothing beside the step
    selected = cost("greats_topk")
    assert selected.steered > 1.5 * plain
    assert selected.plain == pytest.approx(plain, rel=0.1)  # while steering is off
    repeated = cost("repeat_topk")
    assert repeated.steered == pytest.approx(plain, rel=0.1)  # meta steps alone pay
    assert repeated.meta > repeated.steered + plain / 4


def test_steps_before_steering_begins_are_charged_as_plain_ones():
    recipe = shrunken(
        "demo-language",
        "arm=closed_form",
        "value.meta_period=2",
        "value.start_step=2",
        "value.settle_steps=0",
        "budget.steps=5",
    )
    modality = MODALITIES[recipe.modality]()
    parts = modality.build(recipe, modality.load(recipe))
    cost = count(new_step(recipe, parts), parts)
    assert cost.steered > 1.05 * cost.plain
    records = train(Run(recipe, parts, step0={}, cost=cost)).history
    spent = [record["flops"] for record in records]
    steps = [spent[0], *(after - before for before, after in itertools.pairwise(spent))]
    kinds = [cost.plain, cost.plain, cost.meta, cost.steered, cost.meta]
    assert steps == pytest.approx(kinds)
