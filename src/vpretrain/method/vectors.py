"""Vectors over the aligned parameters, kept in pieces by parameter name; sums run in float32 or
wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vpretrain.method.roles import Gradient


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product of two vectors over the same names; a scalar."""
    return torch.stack([(wide(a[name]) * wide(b[name])).sum() for name in a]).sum()


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm; a scalar."""
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(wide(piece)) for piece in a.values()])
    )


def combine(*terms: tuple[float | Tensor, Mapping[str, Tensor]]) -> Gradient:
    """``sum_i factor_i * vector_i`` over the names of the first vector."""
    return {
        name: sum(
            (factor * vector[name] for factor, vector in terms[1:]), start=terms[0][0] * first
        )
        for name, first in terms[0][1].items()
    }


def mean(vectors: Sequence[Gradient]) -> Gradient:
    """The average of several vectors (the only one itself, unscaled, when there is one)."""
    if len(vectors) == 1:
        return vectors[0]
    return combine(*((1 / len(vectors), vector) for vector in vectors))


def named(names: Iterable[str], pieces: Iterable[Tensor]) -> Gradient:
    """A vector from its pieces in the order of the names."""
    return dict(zip(names, pieces, strict=True))


def summed_gradient(pieces: Iterable[Tensor], parameters: Mapping[str, nn.Parameter]) -> Gradient:
    """The gradient of the sum of ``pieces``, in float32 or wider, in the memory of one piece.

    Args:
        pieces: scalars with their graph to the parameters. A generator makes them one by one, each
            after the one before it is gone; without any the gradient is zero.
        parameters: by name; one that no piece depends on has zeros.
    """
    total = {name: torch.zeros_like(wide(p.detach())) for name, p in parameters.items()}
    for piece in pieces:
        parts = torch.autograd.grad(piece, list(parameters.values()), materialize_grads=True)
        for running, part in zip(total.values(), parts, strict=True):
            running += part
    return total


def wide(piece: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it already is."""
    return piece.to(torch.promote_types(piece.dtype, torch.float32))
