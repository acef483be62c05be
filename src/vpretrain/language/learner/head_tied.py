"""One gradient for a matrix that is both input embedding and head.

Autograd makes a table ``[V, D]`` for the lookup's few rows and adds it to the head's: at a
vocabulary of 152k that is the largest tensor of a step beside the head's own gradient, zeroed and
read for nothing. Here the head leaves its part where the lookup, whose turn comes later in every
backward pass, adds its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TiedGradient:
    """What the head has left of one forward pass, for the backward pass that is under way alone.

    A backward pass that does not reach the lookup (for the parameters of S, say) leaves something
    behind; the next one drops it.
    """

    def __init__(self) -> None:
        self.held: Tensor | None = None
        self.left_in = -1

    def leave(self, part: Tensor) -> None:
        """Adds a part ``[V, D]``, which is the caller's no longer."""
        held = self.take()
        self.held, self.left_in = part if held is None else held.add_(part), _backward_pass()

    def take(self) -> Tensor | None:
        """The sum, and nothing is held any more."""
        held, self.held = self.held, None
        return held if self.left_in == _backward_pass() else None


def _backward_pass() -> int:
    """Its number; every pass has another one."""
    return torch._C._current_graph_task_id()


def tied(table: nn.Module, weight: Tensor) -> bool:
    """Whether the lookup in ``table`` reads ``weight``, trains it, and does nothing else."""
    return (
        type(table) is nn.Embedding
        and table.weight is weight
        and weight.requires_grad
        and table.max_norm is None
        and not (table.scale_grad_by_freq or table.sparse)
    )


@contextmanager
def tied_lookup(table: nn.Module, gradient: TiedGradient) -> Iterator[None]:
    """Within this block what ``table`` looks up sends its rows to what the head has left in
    ``gradient``.
    """

    def looked_up(module: nn.Module, args: tuple[Tensor, ...], found: Tensor) -> Tensor:
        assert isinstance(module, nn.Embedding)
        return _Lookup.apply(found.detach(), module.weight, args[0], module.padding_idx, gradient)

    hook = table.register_forward_hook(looked_up)
    try:
        yield
    finally:
        hook.remove()


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        found: Tensor,
        weight: Tensor,
        ids: Tensor,
        padding: int | None,
        gradient: TiedGradient,
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.like, ctx.padding, ctx.gradient = (
            (weight.shape, weight.dtype, weight.device),
            padding,
            gradient,
        )
        return found.view_as(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        shape, dtype, device = ctx.like
        part = ctx.gradient.take()
        if part is None:  # a loss that did not go through the head's pass
            part = torch.zeros(shape, dtype=dtype, device=device)
        if ctx.padding is not None:
            upstream = upstream.masked_fill((ids == ctx.padding)[..., None], 0)
        part.index_add_(0, ids.flatten(), upstream.flatten(0, -2).to(dtype))
        return None, part, None, None, None
