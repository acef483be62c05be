"""A single gradient for a matrix that is both input embedding and head.

Autograd would allocate a second ``[V, D]`` gradient for the lookup's few rows and add it to the
head's: at a vocabulary of 152k, a needless copy of the largest tensor of a step. Here both uses are
outputs of one node, whose backward pass runs once both gradients are known and adds the rows to the
head's gradient in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass
class TiedWeight:
    """The weight ``[V, D]`` for the head of one forward pass: an alias once the lookup has run. Its
    gradient must be dense and unshared, since the lookup's rows are added to it in place."""

    weight: Tensor


def tied(table: nn.Module, weight: Tensor) -> bool:
    """Whether ``table`` is a plain, trained embedding with this very ``weight``."""
    return (
        type(table) is nn.Embedding
        and table.weight is weight
        and weight.requires_grad
        and table.max_norm is None
        and not (table.scale_grad_by_freq or table.sparse)
    )


@contextmanager
def tied_lookup(table: nn.Embedding) -> Iterator[TiedWeight]:
    """A context in which the lookup in ``table`` and the head's weight share an autograd node."""
    shared = TiedWeight(table.weight)

    def looked_up(module: nn.Module, args: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        shared.weight, rows = _Tied.apply(table.weight, rows.detach(), args[0], table.padding_idx)
        return rows

    hook = table.register_forward_hook(looked_up)
    try:
        yield shared
    finally:
        hook.remove()


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, rows: Tensor, ids: Tensor, padding: int | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # no zeros [V, D] for an output without a gradient
        ctx.save_for_backward(ids)
        ctx.like, ctx.padding = (weight.shape, weight.dtype, weight.device), padding
        return weight.view_as(weight), rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_head: Tensor | None, to_rows: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        if to_rows is None:
            return to_head, None, None, None
        shape, dtype, device = ctx.like
        if to_head is None:  # the loss does not depend on the head
            to_head = torch.zeros(shape, dtype=dtype, device=device)
        if ctx.padding is not None:
            to_rows = to_rows.masked_fill((ids == ctx.padding)[..., None], 0)
        to_head.index_add_(0, ids.flatten(), to_rows.flatten(0, -2).to(dtype))
        return to_head, None, None, None
