"""Arithmetic on vectors over the aligned parameters, stored as one tensor per parameter name.

Sums are accumulated in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vpretrain.method.roles import Gradient


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Returns the inner product of two vectors over the same names, a scalar."""
    return torch.stack([(wide(a[name]) * wide(b[name])).sum() for name in a]).sum()


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """Returns the Euclidean norm, a scalar."""
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(wide(piece)) for piece in a.values()])
    )


def combine(*terms: tuple[float | Tensor, Mapping[str, Tensor]]) -> Gradient:
    """Returns ``sum_i factor_i * vector_i`` over the names of the first vector."""
    return {
        name: sum(
            (factor * vector[name] for factor, vector in terms[1:]), start=terms[0][0] * first
        )
        for name, first in terms[0][1].items()
    }


def mean(vectors: Sequence[Gradient]) -> Gradient:
    """Returns the mean of several vectors; a single vector is returned as it is."""
    if len(vectors) == 1:
        return vectors[0]
    return combine(*((1 / len(vectors), vector) for vector in vectors))


def named(names: Iterable[str], pieces: Iterable[Tensor]) -> Gradient:
    """Returns a vector from its pieces, given in the order of the names."""
    return dict(zip(names, pieces, strict=True))


def summed_gradient(pieces: Iterable[Tensor], parameters: Mapping[str, nn.Parameter]) -> Gradient:
    """Returns the gradient of the sum of ``pieces``, in float32 or wider.

    Needs the memory of one piece.

    Args:
        pieces: scalars with their graph to the parameters. A generator makes them one at a time,
            each after the previous one is freed. Without any piece the gradient is zero.
        parameters: by name; zeros for a parameter that no piece depends on.
    """
    total = {name: torch.zeros_like(wide(p.detach())) for name, p in parameters.items()}
    for piece in pieces:
        parts = torch.autograd.grad(piece, list(parameters.values()), materialize_grads=True)
        for running, part in zip(total.values(), parts, strict=True):
            running += part
    return total


def wide(piece: Tensor) -> Tensor:
    """Returns the tensor in float32, or in float64 if it already is."""
    return piece.to(torch.promote_types(piece.dtype, torch.float32))
