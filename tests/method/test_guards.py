"""A designer that no longer designs is noticed, and its task can be given up for the plain one."""

import logging
import math

import pytest

from tests.designers import of_every_kind
from tests.reliability.runs import build, language_recipe, vision_recipe
from vpretrain.language import Language
from vpretrain.language.steering.arms import ARMS
from vpretrain.method.accumulation import next_batches
from vpretrain.method.guards import Collapse, Guard
from vpretrain.method.roles import Learned
from vpretrain.run.build import new_step
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.vision import Vision

HEALTHY = {
    "gate": 0.2,
    "entropy": 1.0,
    "mask_mean": 0.7,
    "mask_std": 0.2,
    "agreement": 0.3,
    "gain": 1.0,
}


BOUNDS = {
    "gate": (0.0, 0.5),
    "entropy": (-math.inf, 2.0),
    "mask_mean": (0.0, 1.0),
    "mask_std": (0.0, math.inf),
}


def after(times, **figures):
    collapse = Collapse(3, BOUNDS)
    for _ in range(times):
        collapse.update(HEALTHY | figures)
    return collapse


@pytest.mark.parametrize(
    "figures, sign",
    [
        ({"gate": 0.0}, "gate stood at 0,"),
        ({"gate": 0.5}, "gate stood at 0.5,"),
        ({"entropy": 2.0}, "entropy stood at 2,"),
        ({"mask_mean": 0.0}, "mask_mean stood at 0,"),
        ({"mask_mean": 1.0}, "mask_mean stood at 1,"),
        ({"mask_std": 0.0}, "mask_std stood at 0,"),
        ({"agreement": -0.1}, "no better than random"),
    ],
)
def test_each_sign_is_seen_once_the_window_is_full_and_not_before(figures, sign):
    assert after(2, **figures).signs == []
    (result,) = after(3, **figures).signs
    assert sign in result


def test_a_designer_at_work_shows_no_sign_and_neither_does_one_that_says_nothing_of_itself():
    assert after(9).signs == []
    assert after(9, entropy=0.0, mask_std=9.0).signs == []  # at no bound
    collapse = Collapse(1, {"gate": (0.0, 0.0), "entropy": (0.0, 1.0)})
    collapse.update(
        {"gain": 1.0, "gate": 0.0}
    )  # a gate that may not open, and an entropy that nobody tells
    assert collapse.signs == []


def test_a_figure_without_a_bound_on_either_side_shows_no_sign():
    collapse = Collapse(1, {"tilt": (-math.inf, math.inf)})
    collapse.update({"tilt": 3.0})
    assert collapse.signs == []


def test_a_sign_is_logged_once_and_is_gone_when_it_is_over(caplog):
    with caplog.at_level(logging.WARNING):
        collapse = after(6, agreement=-1.0)
        for _ in range(3):
            collapse.update(HEALTHY)
        assert collapse.signs == []
        for _ in range(3):
            collapse.update(HEALTHY | {"agreement": -1.0})
    assert len(collapse.signs) == len(caplog.records) == 1


def test_no_window_looks_at_nothing():
    collapse = Collapse(0, {})
    collapse.update(HEALTHY | {"gate": 0.0})
    assert collapse.signs == []


def test_what_was_seen_comes_back():
    collapse, fresh = after(3, gate=0.5), Collapse(3, BOUNDS)
    fresh.load_state_dict(collapse.state_dict())
    fresh.update(HEALTHY | {"gate": 0.5})
    assert fresh.signs == collapse.signs != []


def test_a_sign_is_not_logged_again_after_a_resume(caplog):
    with caplog.at_level(logging.WARNING):
        collapse, fresh = after(3, gate=0.5), Collapse(3, BOUNDS)
        fresh.load_state_dict(collapse.state_dict())
        fresh.update(HEALTHY | {"gate": 0.5})
    assert len(caplog.records) == 1


@pytest.fixture(scope="module")
def words():
    return Language().load(language_recipe())


@pytest.mark.parametrize(
    "on_collapse, steered", [("log", [1, 1, 1, 1, 1]), ("revert", [1, 0, 0, 1, 1])]
)
def test_the_task_is_the_plain_one_until_the_collapse_is_over(words, on_collapse, steered):
    recipe = language_recipe(
        "arm=token_weights",
        "value.guard_window=2",
        "value.meta_period=1",
        "value.settle_steps=0",
        "budget.steps=5",
        f"value.on_collapse={on_collapse}",
    )
    parts = build(recipe, words)
    agreements, learn = iter([-1.0, -1.0, 0.5, 1.0, 1.0]), parts.designer.learn
    parts.designer.learn = lambda context, value_of: Learned(
        learn(context, value_of).metrics | HEALTHY | {"agreement": next(agreements)}
    )
    history = train(Run(recipe, parts, step0={})).history
    assert [record["steered"] for record in history] == steered
    assert [record["collapsed"] for record in history] == [0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "arm, bounds",
    [
        ("closed_form", {"gate": (0.0, 0.25), "entropy": (-math.inf, math.log(4))}),
        ("ascent", {"gate": (0.0, 0.25), "entropy": (-math.inf, math.log(4))}),
        ("token_weights", {"weight_spread": (0.0, math.inf)}),
        ("weighted_targets", {"weight_spread": (0.0, math.inf), "gate": (-math.inf, 0.25)}),
        ("onehot", {}),
    ],
)
def test_bounds_are_those_of_the_designer(words, arm, bounds):
    small = of_every_kind(ARMS, gate_max=0.25, candidates=4)
    recipe = language_recipe(f"arm={arm}", *small)
    step = new_step(recipe, parts := build(recipe, words))
    assert step.meta.collapse.bounds == bounds
    assert bounds.keys() <= step(next_batches(parts.stream, 1), 0.0).keys(), (
        "figures that no meta step tells are never looked at"
    )


def test_masks_have_bounds_too():
    recipe = vision_recipe(
        "arm=ascent", "value.settle_steps=0", "value.meta_period=1", "budget.steps=1"
    )
    parts = build(recipe, Vision().load(recipe))
    step = new_step(recipe, parts)
    assert (
        step.meta.collapse.bounds.keys()
        == {"mask_mean", "mask_std"}
        <= step(next_batches(parts.stream, 1), 0.0).keys()
    )


def test_guard_closes_on_a_negative_window_and_opens_again():
    guard = Guard(3)
    for gain in (-1.0, -1.0):
        guard.update(gain)
    assert guard.allows
    guard.update(-1.0)
    assert not guard.allows
    for gain in (2.0, 2.0):
        guard.update(gain)
    assert guard.allows
    off = Guard(0)
    off.update(-1.0)
    assert off.allows
