"""Designers with a network, in a modality of the tests' own."""

import copy

import pytest
import torch

from tests.method.toy import Context, Given, ascent, pairs
from vpretrain.system.errors import NonFinite


def test_ascent_learns_from_the_first_rows_alone():
    asked = []

    class Counting(Given):
        def each(self, context, task):
            asked.append(len(context.x))
            return super().each(context, task)

    context = Context(*pairs(torch.Generator().manual_seed(0)))
    designer = ascent(meta_rows=4)
    designer.learn(context, Counting(torch.ones(4), torch.ones(4)))
    assert asked == [4, 4] and designer.make_task(context, None).each.shape == (16,)


def test_ascent_follows_the_tangent_of_the_value_at_its_own_choice():
    """`raw`: one step moves the network along -(dV/d control) d control/d phi, here by hand for a
    linear gate.
    """
    designer = ascent(unit="raw")
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    value = torch.randn(16, generator=torch.Generator().manual_seed(3))
    inputs = designer.surface.inputs(context)
    choice = designer.network(inputs).detach()
    expected = (value * choice * (1 - choice)) @ inputs  # ascent: towards more value
    before = designer.network.line.weight.detach().clone()
    designer.learning.updates = 1
    designer.learn(context, Given(value, value))
    moved = designer.network.line.weight.detach() - before
    assert torch.equal(torch.sign(moved[0]), torch.sign(expected))  # Adam's first step is its sign


def test_at_rate_zero_the_network_stays_as_it_is():
    designer = ascent(rate=0.0)
    before = designer.network.line.weight.detach().clone()
    designer.learn(Context(*pairs(torch.Generator().manual_seed(0))), Given(torch.ones(16)))
    assert torch.equal(designer.network.line.weight, before)


def test_a_gradient_that_is_not_finite_leaves_the_network_where_it_was():
    designer = ascent(unit="raw")
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    before = designer.network.line.weight.detach().clone()
    with pytest.raises(NonFinite, match="not taken"):
        designer.learn(context, Given(torch.full((16,), torch.nan)))
    assert torch.equal(designer.network.line.weight, before)
    designer.learn(context, Given(torch.ones(16)))  # and the next update is a sound one
    assert designer.network.line.weight.isfinite().all()


def test_a_restored_designer_learns_at_its_own_rate():
    """Not at that of the run which its state is from."""
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    earlier, designer = ascent(rate=0.02), ascent(rate=0.0)
    earlier.learn(context, Given(torch.randn(16)))
    designer.load_state_dict(copy.deepcopy(earlier.state_dict()))
    designer.learn(context, Given(torch.randn(16)))
    assert torch.equal(designer.network.line.weight, earlier.network.line.weight)


def test_a_restored_designer_learns_on_bit_for_bit():
    context = Context(*pairs(torch.Generator().manual_seed(0)))
    value_of = Given(torch.arange(16.0), torch.arange(16.0) ** 1.1)
    one, other = ascent(), ascent()
    one.learn(context, value_of)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for designer in (one, other):
        designer.learn(context, value_of)
    assert torch.equal(one.network.line.weight, other.network.line.weight)
    assert one.learning.reliability.agreement == other.learning.reliability.agreement
