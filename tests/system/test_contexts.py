"""What a model is put into for a while, it comes back from, also by an exception."""

import pytest
import torch
from torch import nn

from vpretrain.system.contexts import computing, evaluating, frozen, own_random_state


def test_each_module_gets_back_the_mode_that_it_had():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert model.training and model[0].training and not model[1].training


def test_only_what_asked_for_gradients_asks_again():
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)
    with pytest.raises(ZeroDivisionError), frozen([one, two]):
        assert not one.requires_grad
        raise ZeroDivisionError
    assert one.requires_grad and not two.requires_grad


def test_a_random_state_of_its_own_moves_no_other():
    before = torch.get_rng_state()
    with own_random_state(3):
        first = torch.randn(2)
    with own_random_state(3):
        assert torch.equal(torch.randn(2), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_products_in_another_dtype():
    device, matrix = torch.device("cpu"), torch.ones(2, 2)
    with computing(device, torch.bfloat16):
        assert (matrix @ matrix).dtype == torch.bfloat16
    with computing(device, None):
        assert (matrix @ matrix).dtype == torch.float32
