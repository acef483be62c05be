"""Conflict between tasks on hand-made vectors: cosines, and projections that leave none."""

import math

import pytest
import torch

from vpretrain.method import vectors
from vpretrain.method.conflict import cosines, inner_products, kept, projected


def vector(*pieces):
    """Two pieces, so that nothing works on one tensor alone."""
    whole = torch.tensor(pieces, dtype=torch.float64)
    return {"a": whole[:1], "b": whole[1:]}


def flat(gradient):
    return torch.cat([gradient["a"], gradient["b"]])


def test_cosines_of_hand_made_vectors():
    result = cosines(
        {
            "x": vector(1, 0, 0),
            "y": vector(1, 1, 0),
            "z": vector(-2, 0, 0),
            "nothing": vector(0, 0, 0),
        }
    )
    assert result == pytest.approx(
        {
            "x~y": math.sqrt(0.5),
            "x~z": -1,
            "y~z": -math.sqrt(0.5),
            "x~nothing": 0,
            "y~nothing": 0,
            "z~nothing": 0,
        }
    )


def test_gradients_that_agree_are_left_bit_for_bit():
    gradients = [vector(1, 2, 0), vector(0, 1, 1), vector(1, 0, 3)]
    assert all(a is b for a, b in zip(projected(gradients), gradients, strict=True))
    assert all(a is b for a, b in zip(kept(gradients), gradients, strict=True))


def test_two_in_conflict_lose_what_harms_the_other():
    """By hand (PCGrad): g - <g, h> / |h|^2 h."""
    one, other = projected([vector(1, 1, 0), vector(-2, 0, 1)])
    torch.testing.assert_close(
        flat(one), torch.tensor([1, 1, 0]).double() + 2 / 5 * torch.tensor([-2, 0, 1]).double()
    )
    torch.testing.assert_close(
        flat(other), torch.tensor([-2, 0, 1]).double() + torch.tensor([1, 1, 0]).double()
    )


def test_opposite_gradients_cancel():
    one, other = projected([vector(1, 2, -1), vector(-2, -4, 2)])
    assert flat(one).abs().max() < 1e-7 and flat(other).abs().max() < 1e-7


@pytest.mark.parametrize("seed", range(6))
def test_no_weighted_sum_of_projections_harms_a_task(seed):
    """Which the sum of the gradients themselves does, and PCGrad's does for three tasks or more."""
    generator = torch.Generator().manual_seed(seed)
    gradients = [vector(*torch.randn(4, generator=generator).tolist()) for _ in range(5)]
    assert inner_products(gradients).min() < 0
    results = projected(gradients)
    for i, result in enumerate(results):
        others = [float(vectors.inner(result, g)) for j, g in enumerate(gradients) if j != i]
        assert min(others) > -1e-9
        assert vectors.norm(result) <= vectors.norm(gradients[i]) + 1e-12
    total = vectors.combine(
        *((weight, r) for weight, r in zip((1, 2, 0.5, 3, 1), results, strict=True))
    )
    assert min(float(vectors.inner(total, g)) for g in gradients) > -1e-9


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1e-6, 1.0, 1e3)])
def test_gradients_of_any_size_that_are_opposite_but_for_rounding(sizes):
    """As two tasks that share their rows, one of them reversed; in float32 as in a run."""
    generator = torch.Generator().manual_seed(3)
    one, third = torch.randn(2, 50, generator=generator)
    pieces = [one, -1.0000001 * one, third]
    gradients = [{"a": size * piece} for size, piece in zip(sizes, pieces, strict=True)]
    for result, gradient in zip(projected(gradients), gradients, strict=True):
        size = float(vectors.norm(gradient))
        assert float(vectors.norm(result)) <= size * (1 + 1e-5)
        for other in gradients:
            if other is not gradient:
                conflict = float(vectors.inner(result, other))
                assert conflict > -1e-5 * size * float(vectors.norm(other))


def test_the_projection_is_the_nearest_vector_without_a_conflict():
    """Against a search over the feasible set by brute force."""
    gradients = [vector(1, 1), vector(-1, 0.2), vector(0.3, -1)]
    result = flat(projected(gradients)[0])
    grid = torch.linspace(-2, 2, 801, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    feasible = points[
        (points @ torch.stack([flat(g) for g in gradients[1:]]).T >= -1e-9).all(dim=1)
    ]
    nearest = (feasible - flat(gradients[0])).norm(dim=1).min()
    assert float((result - flat(gradients[0])).norm()) == pytest.approx(float(nearest), abs=0.01)
