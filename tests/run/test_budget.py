from __future__ import annotations

import pytest

from vpretrain.config.recipe import Budget
from vpretrain.run.budget import Spending


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_the_first_limit_used_up_ends_the_run() -> None:
    budget = Budget(steps=10, tokens=1000, seconds=60.0)
    spending = Spending()
    assert spending.fraction(budget) == 0.0
    spending.add(steps=5, tokens=900, seconds=6.0)
    assert spending.fraction(budget) == pytest.approx(0.9)
    assert not spending.exhausted(budget)
    spending.add(tokens=250)
    assert spending.fraction(budget) == 1.0
    assert spending.exhausted(budget)


def test_a_limit_that_is_not_given_ends_nothing() -> None:
    spending = Spending(steps=10**9, tokens=5, seconds=1e9)
    assert spending.fraction(Budget(tokens=10)) == 0.5


def test_a_share_of_what_was_left_when_the_count_begins():
    spending, before = Spending(steps=3, tokens=700), Spending(tokens=500)
    assert spending.fraction(Budget(steps=None, tokens=1000), since=before) == 0.4
    assert spending.fraction(Budget(steps=5, tokens=1000), since=before) == 0.6


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 49, 240])
def test_exactly_the_given_steps_are_taken(steps: int) -> None:
    spending, budget = Spending(), Budget(steps=steps)
    while not spending.exhausted(budget):
        spending.add(steps=1)
    assert spending.steps == steps


def test_state_resumes_exactly() -> None:
    spending = Spending(steps=3, tokens=77, seconds=0.1 + 0.2)
    resumed = Spending()
    resumed.load_state_dict(spending.state_dict())
    assert resumed == spending
    with pytest.raises(KeyError):
        resumed.load_state_dict({"steps": 1})
    assert resumed == spending


@pytest.mark.parametrize("figure", [-1.0, float("nan"), float("inf")])
def test_what_was_used_never_shrinks_nor_breaks(figure: float) -> None:
    spending = Spending(seconds=1.0)
    with pytest.raises(ValueError, match="seconds"):
        spending.add(steps=1, seconds=figure)
    assert spending == Spending(seconds=1.0)
    with pytest.raises(ValueError, match="seconds"):
        Spending(seconds=figure)


def test_only_the_time_of_timed_blocks_is_charged_also_when_they_fail() -> None:
    now, spending = Hand(), Spending()
    for _ in range(3):
        with spending.timing(now):
            now.time += 2.0
        now.time += 50.0  # an evaluation
    with pytest.raises(KeyError), spending.timing(now):
        now.time += 1.5
        raise KeyError
    assert spending.seconds == 7.5
