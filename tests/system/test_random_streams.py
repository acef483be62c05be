"""Everything random: seeded together, put back together."""

import random

import numpy
import torch

from vpretrain.system.random_streams import random_state, seed_everything, set_random_state


def drawn():
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def test_a_seed_and_a_state_give_the_same_numbers_again():
    seed_everything(5)
    first = drawn()
    state = random_state()
    second = drawn()
    assert first != second
    set_random_state(state)
    assert drawn() == second
    seed_everything(5)
    assert drawn() == first
