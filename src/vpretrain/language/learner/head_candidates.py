"""The tokens with the best scores, and the scores of given tokens.

Shapes: N or M positions, D hidden width, V vocabulary, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.method.vectors import wide

GATHERED = 2**20
"""Number of weight elements gathered at a time: few enough to stay in a CPU's cache."""


def best(scores: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The true token followed by the best others in descending order, and their scores, both
    ``[M, count]``.

    Args:
        scores: ``[M, V]``; modified in place and restored.
        labels: ``[M, 1]`` int64.
        count: from 1 to V.
    """
    # Raising the true token to +inf puts it first and keeps the others distinct from it, even if
    # some scores are -inf.
    truth = scores.gather(1, labels)
    scores.scatter_(1, labels, torch.inf)
    ids = top(scores, count)
    scores.scatter_(1, labels, truth)
    return ids, scores.gather(1, ids)


def top(scores: Tensor, count: int) -> Tensor:
    """Indices ``[M, count]`` of the largest scores of each row of ``[M, V]``, in descending order.

    The ``count`` largest scores are in the ``count`` blocks with the largest maxima, so only the
    blocks' maxima and then these blocks are sorted: ``2 sqrt(V count)`` numbers rather than V.
    """
    vocabulary = scores.shape[1]
    span = math.isqrt(vocabulary // count)
    if span < 4:
        return scores.topk(count, dim=1).indices
    blocks = vocabulary // span
    whole = blocks * span  # block b consists of b, b + blocks, b + 2 blocks, ...
    chosen = scores[:, :whole].unflatten(1, (span, blocks)).amax(dim=1).topk(count, dim=1).indices
    pool = (chosen[:, :, None] + torch.arange(0, whole, blocks, device=scores.device)).flatten(1)
    rest = torch.arange(whole, vocabulary, device=scores.device).expand(len(scores), -1)
    pool = torch.cat([pool, rest], dim=1)
    return pool.gather(1, scores.gather(1, pool).topk(count, dim=1).indices)


def candidate_scores(states: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """``states[n] . weight[ids[n, k]]``, ``[N, K]``, without a tensor ``[N, K, D]``.

    Linear in the states, and differentiable in them to any order, in both modes.

    Args:
        states: ``[N, D]``; gradients flow.
        weight: ``[V, D]``; gathered rows are cast to the dtype of the states. No gradient flows.
        ids: ``[N, K]`` int64.
    """
    return _Gathered.apply(states, weight, ids, False)


class _Gathered(torch.autograd.Function):
    """Maps states ``[N, D]`` to scores ``[N, K]`` or, transposed, factors ``[N, K]`` to states
    ``[N, D]``. Both maps are linear, and each is the backward pass of the other."""

    @staticmethod
    def forward(values: Tensor, weight: Tensor, ids: Tensor, transposed: bool) -> Tensor:
        if transposed:
            return weighted_rows(weight, ids, wide(values)).to(values.dtype)
        parts = [
            torch.bmm(rows.to(of.dtype), of[:, :, None]).squeeze(2)
            for rows, of in _in_parts(weight, ids, values)
        ]
        return torch.cat(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Any) -> None:
        ctx.save_for_backward(*inputs[1:3])
        ctx.save_for_forward(*inputs[1:3])
        ctx.transposed = inputs[3]
        ctx.set_materialize_grads(False)  # forward mode would fill zeros for the weight

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        to_values = _Gathered.apply(upstream, *ctx.saved_tensors, not ctx.transposed)
        return to_values, None, None, None

    @staticmethod
    def jvp(ctx: Any, values: Tensor, *_: None) -> Tensor:
        return _Gathered.apply(values, *ctx.saved_tensors, ctx.transposed)


def weighted_rows(weight: Tensor, ids: Tensor, factors: Tensor) -> Tensor:
    """``sum_k factors[n, k] weight[ids[n, k]]``, ``[N, D]`` in the dtype of ``factors``, without a
    tensor ``[N, K, D]``.

    Args:
        weight: ``[V, D]``, of any dtype.
        ids: ``[N, K]`` int64.
        factors: ``[N, K]``, float32 or wider.
    """
    if weight.dtype == factors.dtype:
        return nn.functional.embedding_bag(ids, weight, per_sample_weights=factors, mode="sum")
    parts = [
        torch.bmm(of[:, None], rows.to(factors.dtype)).squeeze(1)
        for rows, of in _in_parts(weight, ids, factors)
    ]
    return torch.cat(parts)


def _in_parts(weight: Tensor, ids: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields gathered rows ``[M, K, D]`` of the weight with the values of the same positions."""
    size = max(1, GATHERED // (ids.shape[1] * weight.shape[1]))
    for at, of in zip(ids.split(size), values.split(size), strict=True):
        yield weight.index_select(0, at.flatten()).view(*at.shape, -1), of
