"""A tilt of weights is kept as far as its gain exceeds what plain training gains."""

import pytest
import torch

from vpretrain.method.price import SpreadPrice

WEIGHTS = torch.tensor([1.5, 0.5, 1.5, 0.5])


def priced(values, weights=WEIGHTS):
    price = SpreadPrice()
    figures = price.update(weights, torch.tensor(values))
    return price, figures


def test_all_of_it_before_the_first_update():
    assert SpreadPrice().fraction == 1


def test_all_of_it_where_plain_training_works_against_the_feedback():
    price, figures = priced([0.1, -0.3, 0.1, -0.3])
    assert figures["value_baseline"] == pytest.approx(-0.4)
    assert figures["gain"] == pytest.approx(0.4)
    assert price.fraction == 1


def test_none_of_it_where_it_gains_nothing():
    assert priced([-0.1, 0.3, -0.1, 0.3])[0].fraction == 0
    assert priced([0.0, 0.0, 0.0, 0.0])[0].fraction == 0


def test_weights_without_a_spread_have_no_price():
    assert priced([1.0, 1.0, 1.0, 1.0], torch.ones(4))[0].fraction == 0


def test_the_fraction_makes_the_most_progress():
    values, moved = torch.tensor([1.05, 0.95, 1.05, 0.95]), WEIGHTS - 1

    def progress(c):
        gained = ((1 + c * moved) * values).sum()
        return float(gained / (1 + c**2 * moved.square().mean()).sqrt())

    fraction = priced(values.tolist())[0].fraction
    assert 0 < fraction < 1
    best = max((c / 1000 for c in range(1001)), key=progress)
    assert fraction == pytest.approx(best, abs=2e-3)


def test_a_gain_within_its_noise_pays_for_nothing():
    price = SpreadPrice()
    for gain in (0.05, -0.04, 0.05, -0.04):
        price.update(WEIGHTS, 1 + gain * torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert price.fraction == 0
    for _ in range(8):  # a window of a steady gain
        price.update(WEIGHTS, 1 + 0.05 * torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert price.fraction == pytest.approx(0.1, rel=1e-3)  # G / (V S)


def test_one_update_of_another_size_does_not_outweigh_the_rest():
    price = SpreadPrice()
    price.update(WEIGHTS, 1e3 * torch.tensor([0.1, -0.3, 0.1, -0.3]))
    for _ in range(4):
        price.update(WEIGHTS, torch.tensor([0.9, 1.1, 0.9, 1.1]))
    assert price.fraction == 0


def test_updates_are_restored():
    price = priced([1.05, 0.95, 1.05, 0.95])[0]
    price.update(WEIGHTS, torch.tensor([1.04, 0.96, 1.04, 0.96]))
    restored = SpreadPrice()
    restored.load_state_dict(price.state_dict())
    assert 0 < restored.fraction == price.fraction
