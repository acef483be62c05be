"""Gradients of the loss to hidden states, weight and bias of the head, accumulated over chunks.

Shapes: N positions in the loss, M of a chunk, D hidden width, V vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vpretrain.language.learner.head_candidates import weighted_rows


@dataclass
class Gradients:
    """Gradients to scaled hidden states ``[N, D]``, weight ``[V, D]`` and bias ``[V]``, or None."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    started: bool = field(default=False, init=False)

    @property
    def has(self) -> tuple[bool, ...]:
        """Whether there is a gradient to hidden states, weight and bias."""
        return tuple(part is not None for part in (self.hidden, self.weight, self.bias))

    def __bool__(self) -> bool:
        return any(self.has)

    def release(self) -> Gradients:
        """Moves these gradients to a new object, which leaves none here."""
        released = Gradients(self.hidden, self.weight, self.bias)
        self.hidden = self.weight = self.bias = None
        return released

    def take(self, other: Gradients) -> None:
        """Replaces these gradients by those that the other has."""
        self.hidden = self.hidden if other.hidden is None else other.hidden
        self.weight = self.weight if other.weight is None else other.weight
        self.bias = self.bias if other.bias is None else other.bias

    def add(
        self,
        rows: slice,
        slopes: Tensor,
        product: Tensor,
        states: Tensor,
        weight: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        """Adds the gradients of a chunk; the first chunk overwrites.

        Args:
            rows: positions of the chunk.
            slopes: ``[M, V]``, dloss/dscores of tokens of weight 1.
            product: ``slopes`` in the dtype of the products.
            states: ``[M, D]``, scaled hidden states of the chunk.
            weight: ``[V, D]``.
            weights: ``[M]``, the tokens' weights; None: 1.
        """
        previous = 1 if self.started else 0  # factor of what earlier chunks added
        if self.hidden is not None:
            if product.dtype == self.hidden.dtype:
                torch.mm(product, weight, out=self.hidden[rows])
            else:
                self.hidden[rows] = product @ weight
            if weights is not None:
                self.hidden[rows] *= weights[:, None]
        if self.weight is not None:
            # Weighting [M, D] states instead of [M, V] slopes saves a pass over the vocabulary.
            if weights is not None:
                states = (states * weights[:, None]).to(product.dtype)
            if product.dtype == self.weight.dtype:
                torch.addmm(self.weight, product.t(), states, beta=previous, out=self.weight)
            else:  # a part of the vocabulary at a time, to keep the temporary small
                for part in range(0, len(self.weight), 2**14):
                    piece = self.weight[part : part + 2**14]
                    added = product[:, part : part + 2**14].t() @ states
                    piece.add_(added) if previous else piece.copy_(added)
        if self.bias is not None:
            summed = slopes.sum(dim=0) if weights is None else weights.to(slopes.dtype) @ slopes
            torch.add(summed, self.bias if previous else 0, out=self.bias)
        self.started = True

    def scale(self, weights: Tensor, factor: Tensor) -> None:
        """Scales, in place, the rows of the gradient to hidden states by ``weights`` ``[N]``, and
        the other gradients by one factor."""
        if self.hidden is not None:
            self.hidden *= weights[:, None]
        for part in (self.weight, self.bias):
            if part is not None:
                part *= factor

    def subtract(self, ids: Tensor, sparse: Tensor, states: Tensor, weight: Tensor) -> None:
        """Subtracts ``sparse[n, k]`` from the slope of logit ``ids[n, k]``, in all gradients."""
        if self.hidden is not None:
            self.hidden -= weighted_rows(weight, ids, sparse)
        states = states.to(sparse.dtype)
        for k in range(ids.shape[1]):
            if self.weight is not None:
                self.weight.index_add_(0, ids[:, k], states * -sparse[:, k, None])
            if self.bias is not None:
                self.bias.index_add_(0, ids[:, k], -sparse[:, k])


@dataclass
class Slopes:
    """``p'`` of the first positions (see :mod:`vpretrain.language.learner.head`), in chunks
    ``[M, V]``: kept for the gradient to the weight matrix until the tokens' weights are known.

    Args:
        left: number of positions for which there is still room.
    """

    left: int
    parts: list[Tensor] = field(default_factory=list, init=False)

    def place(self, part: Tensor) -> Tensor:
        """Keeps a buffer, which the caller fills with a chunk, and returns it."""
        self.left -= len(part)
        self.parts.append(part)
        return part

    def release(self) -> list[Tensor]:
        """Moves the chunks to the caller, which leaves none here."""
        released, self.parts = self.parts, []
        return released


def alike(weights: Tensor) -> bool:
    """Whether all weights are equal up to rounding."""
    if not len(weights):
        return True
    rounding = 64 * torch.finfo(weights.dtype).eps
    mean = weights.mean()
    return bool((weights - mean).abs().max() <= rounding * mean.abs())
