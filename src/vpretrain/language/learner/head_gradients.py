"""Gradients of the loss to what the head multiplies, gathered chunk by chunk.

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
    begun: bool = field(default=False, init=False)

    @property
    def has(self) -> tuple[bool, ...]:
        """Which of them are here."""
        return tuple(part is not None for part in (self.hidden, self.weight, self.bias))

    def __bool__(self) -> bool:
        return any(self.has)

    def handed_over(self) -> Gradients:
        """These gradients for a new owner; here there are none any more."""
        given = Gradients(self.hidden, self.weight, self.bias)
        self.hidden = self.weight = self.bias = None
        return given

    def take(self, other: Gradients) -> None:
        """What the other has."""
        self.hidden = self.hidden if other.hidden is None else other.hidden
        self.weight = self.weight if other.weight is None else other.weight
        self.bias = self.bias if other.bias is None else other.bias

    def add(
        self, rows: slice, slopes: Tensor, product: Tensor, states: Tensor, weight: Tensor
    ) -> None:
        """A chunk: dloss/dscores ``[M, V]``, and the same in the dtype of the products."""
        kept = 1 if self.begun else 0
        if self.hidden is not None:
            if product.dtype == self.hidden.dtype:
                torch.mm(product, weight, out=self.hidden[rows])
            else:
                self.hidden[rows] = product @ weight
        if self.weight is not None:
            if product.dtype == self.weight.dtype:
                torch.addmm(self.weight, product.t(), states, beta=kept, out=self.weight)
            else:  # a part of the vocabulary at a time, so that what is added is small
                for part in range(0, len(self.weight), 2**14):
                    piece = self.weight[part : part + 2**14]
                    added = product[:, part : part + 2**14].t() @ states
                    piece.add_(added) if kept else piece.copy_(added)
        if self.bias is not None:
            torch.add(slopes.sum(dim=0), self.bias if kept else 0, out=self.bias)
        self.begun = True

    def scale(self, weights: Tensor, factor: Tensor) -> None:
        """Hidden states' by a weight ``[N]`` for every token, the others by one factor."""
        if self.hidden is not None:
            self.hidden *= weights[:, None]
        for part in (self.weight, self.bias):
            if part is not None:
                part *= factor

    def subtract(self, ids: Tensor, sparse: Tensor, states: Tensor, weight: Tensor) -> None:
        """``sparse[n, k]`` off the slope of logit ``ids[n, k]``."""
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
    """``p'`` of the first positions (see :mod:`vpretrain.language.learner.head`), ``[M, V]`` chunk
    by chunk: what the gradient to the weight matrix is made of once the tokens' weights are known.

    Args:
        left: positions that there is room for yet.
    """

    left: int
    parts: list[Tensor] = field(default_factory=list, init=False)

    def place(self, part: Tensor) -> Tensor:
        """Room for a chunk, which is written there."""
        self.left -= len(part)
        self.parts.append(part)
        return part

    def handed_over(self) -> list[Tensor]:
        """The chunks for a new owner; here there are none any more."""
        given, self.parts = self.parts, []
        return given


def alike(weights: Tensor) -> bool:
    """Whether weights are the same for every token, but for rounding."""
    if not len(weights):
        return True
    rounding = 64 * torch.finfo(weights.dtype).eps
    mean = weights.mean()
    return bool((weights - mean).abs().max() <= rounding * mean.abs())
