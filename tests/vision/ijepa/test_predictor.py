"""The predictor reads places, and is made by its seed."""

import pytest
import torch

from vpretrain.system.errors import UserError
from vpretrain.vision.ijepa.predictor import Predictor


def test_predictions_depend_on_the_places_of_context_and_targets():
    predictor = Predictor(32, width=16, depth=2, heads=2, seed=1)
    states = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    context, targets = torch.tensor([[0, 1, 5]]), torch.tensor([[[2, 3], [6, 7]]])
    out = predictor(states, context, targets, 4)
    assert out.shape == (1, 2, 2, 32)
    assert (out[0, 0, 0] - out[0, 0, 1]).abs().max() > 1e-4
    assert (predictor(states, context + 8, targets, 4) - out).abs().max() > 1e-4
    # As a set: the order of the context patches is not read, their places are.
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(predictor(states[:, order], context[:, order], targets, 4), out)
    assert (predictor(states[:, order], context, targets, 4) - out).abs().max() > 1e-4


def test_a_predictor_is_made_by_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again = (Predictor(32, width=16, depth=1, heads=2, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    with pytest.raises(UserError, match=r"learner\.predictor\.width"):
        Predictor(32, width=18, depth=1, heads=2, seed=1)
