"""Conflict between feedback tasks: how far their gradients agree, and gradients that agree.

Vectors over S, one a task; J of them. Everything beyond their J x J inner products happens in J
dimensions.
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
"""One gradient a task in, as many out, each for its task."""


def inner_products(gradients: Sequence[Gradient]) -> Tensor:
    """``[J, J]`` float64 on the CPU: the gradients' inner products with each other."""
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for a, one in enumerate(gradients):
        for b in range(a, len(gradients)):
            products[a, b] = products[b, a] = vectors.inner(one, gradients[b]).double()
    return products


def cosines(gradients: Mapping[str, Gradient]) -> dict[str, float]:
    """Cosine of each two tasks' gradients as ``a~b``, in [-1, 1]; 0 where one of them is zero."""
    products = inner_products(list(gradients.values()))
    sizes = products.diagonal().sqrt()
    by_pair = {}
    for (a, one), (b, other) in combinations(enumerate(gradients), 2):
        size = float(sizes[a] * sizes[b])
        by_pair[f"{one}~{other}"] = float(products[a, b]) / size if size else 0.0
    return by_pair


def kept(gradients: Sequence[Gradient]) -> list[Gradient]:
    """The gradients as they are: conflicts are summed over."""
    return list(gradients)


def projected(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Each gradient moved as little as it takes to have no negative inner product with any other
    task's.

    ``argmin_v |v - g_i|`` subject to ``<v, g_j> >= 0`` for all j: the projection of GEM (Lopez-Paz
    & Ranzato, arXiv 1706.08840), here every task on all others at once. For two tasks it is PCGrad
    (Yu et al., arXiv 2001.06782); for more it depends on no order, and no sum of the results with
    weights >= 0 conflicts with any task: of the terms of ``<sum_i w_i v_i, g_j>`` the j-th is
    ``w_j |v_j|^2``, and no other is negative.

    Gradients without a conflict are returned as they are.
    """
    products = inner_products(gradients)
    # The same inner products in J dimensions: column j stands for g_j.
    values, basis = torch.linalg.eigh(products)
    columns = (values.clamp_min(0).sqrt()[:, None] * basis.T).numpy()
    results = []
    for i, gradient in enumerate(gradients):
        others = [j for j in range(len(gradients)) if j != i]
        if all(products[i, j] >= 0 for j in others):
            results.append(gradient)
            continue
        # The dual: v = g_i + sum_j factor_j g_j with the factors >= 0 that make v smallest.
        import scipy.optimize  # half a second, for those who have several tasks

        factors, _ = scipy.optimize.nnls(
            numpy.ascontiguousarray(-columns[:, others]), columns[:, i]
        )
        terms = [
            (float(factor), gradients[j])
            for factor, j in zip(factors, others, strict=True)
            if factor > 0
        ]
        results.append(vectors.combine((1.0, gradient), *terms))
    return results
