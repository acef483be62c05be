"""Gradients of the head that are gathered chunk by chunk."""

import pytest
import torch

from vpretrain.language.learner.head_gradients import Gradients, alike


def test_weights_that_differ_by_rounding_are_alike():
    weights = torch.full((100,), 1.0)
    assert alike(weights) and alike(weights[:0])
    assert alike(weights * (1 + 3 * torch.finfo(weights.dtype).eps * torch.arange(100) / 100))
    weights[3] += 1e-3
    assert not alike(weights)


@pytest.mark.parametrize("narrow", [False, True])
def test_chunks_add_up_to_the_products_of_all_rows(narrow):
    generator = torch.Generator().manual_seed(0)
    slopes, states, weight = (
        torch.randn(*shape, generator=generator) for shape in ((6, 9), (6, 4), (9, 4))
    )
    made = Gradients(torch.empty(6, 4), torch.empty(9, 4), torch.empty(9))
    dtype = torch.bfloat16 if narrow else torch.float32
    of, rows = states.to(dtype), weight.to(dtype)
    for part in (slice(0, 4), slice(4, 6)):
        made.add(part, slopes[part], slopes[part].to(dtype), of[part], rows)
    tolerance = {"rtol": 2e-2, "atol": 6e-2} if narrow else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(made.hidden, slopes @ weight, **tolerance)
    torch.testing.assert_close(made.weight, slopes.t() @ states, **tolerance)
    torch.testing.assert_close(made.bias, slopes.sum(dim=0))


def test_what_is_handed_over_is_here_no_more():
    made = Gradients(torch.ones(2, 3), None, torch.ones(4))
    given = made.release()
    assert given.has == (True, False, True) and not made
    made.take(given)
    assert made.has == (True, False, True)
