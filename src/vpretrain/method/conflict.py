"""Conflicting gradients of several feedback tasks: measuring the conflict and projecting it out.

The gradients are vectors over S, one for each of J tasks. Beyond their J x J inner products, all
computation happens in J dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy
import torch
from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.roles import Gradient

Resolve = Callable[[Sequence[Gradient]], list[Gradient]]
"""Maps one gradient per task to one gradient per task, in the same order."""


def inner_products(gradients: Sequence[Gradient]) -> Tensor:
    """Returns the Gram matrix of the gradients, ``[J, J]`` float64 on the CPU."""
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for a, one in enumerate(gradients):
        for b in range(a, len(gradients)):
            products[a, b] = products[b, a] = vectors.inner(one, gradients[b]).double()
    return products


def cosines(gradients: Mapping[str, Gradient]) -> dict[str, float]:
    """Returns the cosine between the gradients of each pair of tasks, in [-1, 1], keyed ``a~b``.

    The cosine is 0 where one of the two gradients is zero.
    """
    products = inner_products(list(gradients.values()))
    sizes = products.diagonal().sqrt()
    by_pair = {}
    for (a, one), (b, other) in combinations(enumerate(gradients), 2):
        size = float(sizes[a] * sizes[b])
        by_pair[f"{one}~{other}"] = float(products[a, b]) / size if size else 0.0
    return by_pair


def kept(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Returns the gradients unchanged: conflicts are left to cancel in the sum."""
    return list(gradients)


def projected(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Moves each gradient as little as needed for it to conflict with no other task's.

    ``argmin_v |v - g_i|`` subject to ``<v, g_j> >= 0`` for all j: the projection of GEM (Lopez-Paz
    & Ranzato, arXiv 1706.08840), here applied to every task against all others at once. For two
    tasks it is PCGrad (Yu et al., arXiv 2001.06782). For more than two, the result does not depend
    on the order of the tasks. No sum of the results with weights >= 0 conflicts with any task:
    among the terms of ``<sum_i w_i v_i, g_j>`` the j-th is ``w_j |v_j|^2``, and no other is
    negative.

    Gradients without a conflict are returned unchanged.
    """
    products = inner_products(gradients)
    # Of unit length: tasks of other units may have gradients of quite other sizes.
    sizes = products.diagonal().sqrt()
    cosines = products / (sizes[:, None] * sizes).clamp_min(torch.finfo(products.dtype).tiny)
    # About the rounding error of their inner products is added to each square: otherwise gradients
    # that are opposite but for rounding get factors of any size.
    rounding = 8 * torch.finfo(next(iter(gradients[0].values())).dtype).eps
    # Vectors in J dimensions with these inner products: column j represents g_j / |g_j|.
    values, basis = torch.linalg.eigh(cosines + rounding * torch.eye(len(gradients)))
    columns = (values.clamp_min(0).sqrt()[:, None] * basis.T).numpy()
    results = []
    for i, gradient in enumerate(gradients):
        others = [j for j in range(len(gradients)) if j != i and sizes[j] > 0]
        if all(products[i, j] >= 0 for j in others):
            results.append(gradient)
            continue
        # Dual problem: v = g_i + sum_j factor_j g_j with the factors >= 0 that minimise |v|, here
        # for unit lengths.
        import scipy.optimize  # takes half a second: imported only for conflicting tasks

        factors, _ = scipy.optimize.nnls(
            numpy.ascontiguousarray(-columns[:, others]), columns[:, i]
        )
        terms = [
            (float(factor * sizes[i] / sizes[j]), gradients[j])
            for factor, j in zip(factors, others, strict=True)
            if factor > 0
        ]
        results.append(vectors.combine((1.0, gradient), *terms))
    return results
