"""Vectors over the aligned parameters, kept in pieces by parameter name; sums run in float32 or
wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

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


def wide(piece: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it already is."""
    return piece.to(torch.promote_types(piece.dtype, torch.float32))
