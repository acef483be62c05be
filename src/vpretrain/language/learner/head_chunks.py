"""The output layer, and passes over its vocabulary that hold logits of a chunk of positions only.

Shapes: N positions in the loss, M of a chunk, D hidden width, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpretrain.language.learner.head_candidates import best
from vpretrain.language.learner.head_gradients import Gradients, Slopes
from vpretrain.method.vectors import wide
from vpretrain.system.devices import for_kind
from vpretrain.system.errors import user_error
from vpretrain.system.timing import section

CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**27}
"""Logits of a chunk (``M V``), by kind of device; others as ``cuda``. W is read three times a
chunk: fewer positions, less speed. On a CPU 2**25 (220 positions at V = 152k, 134 MB) is within
noise of any more (benchmarks/head.py)."""


def chunk_rows(positions: int, rows: int) -> int:
    """Positions of a chunk, ``rows`` or a few less: no small rest at the end; at least 1."""
    return max(1, -(-positions // max(1, -(-positions // rows))))


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: ``finish(scale h W^T + b)``, finish(z) = z or
    ``cap tanh(z / cap)``.

    Args:
        weight: ``[V, D]``; may carry a graph of its own.
        bias: ``[V]`` or None; -inf shuts a token out.
        scale: of the scores before the bias (Cohere, Granite).
        cap: > 0, the soft bound of the logits (Gemma 2); None: none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, module: nn.Module, *, scale: float = 1.0, cap: float | None = None) -> Head:
        """From a model's output layer; ``UserError`` if that is not a plain linear layer."""
        if type(module) is not nn.Linear or (scale != 1 and module.bias is not None):
            message = "the output layer is no plain linear layer, so the loss cannot be taken in "
            message += (
                "chunks of the vocabulary; take it out of learner.lora.targets if it is there"
            )
            accepted = "torch.nn.Linear (without a bias where the scores are scaled)"
            shown = type(module).__name__
            raise user_error("learner.model", message, value=shown, accepted=accepted)
        return cls(module.weight, module.bias, scale, cap)

    def finish(self, scores: Tensor) -> Tensor:
        """Logits of scores."""
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap

    def slope(self, logits: Tensor) -> Tensor | None:
        """D logits / d scores; None where it is 1."""
        return None if self.cap is None else 1 - (logits / self.cap).square()


class Chunks:
    """Passes over the vocabulary, a chunk of positions at a time.

    Args:
        hidden: ``[N, D]``.
        head: the output layer.
        labels: ``[N]`` int64, the true tokens.
        rows: M, positions of a chunk; at most N are taken. The default follows ``CHUNK_LOGITS``.
    """

    def __init__(self, hidden: Tensor, head: Head, labels: Tensor, rows: int | None) -> None:
        self.hidden, self.head, self.labels = hidden, head, labels
        self.vocabulary = len(head.weight)
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        self.rows = rows or max(1, for_kind(CHUNK_LOGITS, device) // self.vocabulary)

    def operands(self) -> tuple[Tensor, Tensor]:
        """Hidden states, scaled, and weight: what is multiplied."""
        states, weight = self.hidden.detach() * self.head.scale, self.head.weight.detach()
        return states.to(self.dtype), weight.to(self.dtype)

    def passed(
        self,
        count: int,
        dense: Gradients,
        weights: Tensor | None,
        slopes: Slopes | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates ``[N, K]``, their logits, and the log-sum-exp ``[N]``; adds to ``dense``.

        Args:
            count: K; 2 are looked for at least.
            dense: gradients to hidden states, weight and bias, where they are wanted.
            weights: ``[N]`` of the tokens in these gradients; None: 1.
            slopes: where those of the first positions are kept.
        """
        # The best other token tells the largest logit, which costs no more than to look for that
        # alone.
        parts = self._each(max(count, min(2, self.vocabulary)), dense, weights, slopes)
        ids, logits, log_z = (torch.cat(part) for part in zip(*parts, strict=True))
        return ids, logits, log_z

    def gradients(
        self, wanted: tuple[bool, ...], weights: Tensor | None, slopes: Slopes | None = None
    ) -> Gradients:
        """The dense gradients alone; ``slopes`` that an earlier pass kept are not made again where
        the gradient to the hidden states is not asked for, and are used up."""
        dense, start = self.empty(wanted), 0
        if slopes is not None and weights is not None and not wanted[0]:
            states, weight = self.operands()
            for kept in slopes.handed_over():
                rows = slice(start, start := start + len(kept))
                kept *= weights[rows, None]
                dense.add(rows, kept, kept, states[rows], weight)
        for _ in self._each(min(2, self.vocabulary), dense, weights, start=start):
            pass
        return dense

    def empty(self, wanted: tuple[bool, ...]) -> Gradients:
        """Room for those that are wanted."""
        parts = (self.hidden, self.head.weight, self.head.bias)
        dtype = torch.promote_types(self.dtype, torch.float32)
        hidden, weight, bias = (
            torch.empty_like(t, dtype=dtype) if t is not None and w else None
            for t, w in zip(parts, wanted, strict=True)
        )
        return Gradients(hidden, weight, bias)

    def slopes(self) -> Slopes:
        """Room for those of as many positions as take no more memory than the gradient to the
        weight matrix does, or a chunk."""
        of_gradient = torch.promote_types(self.dtype, torch.float32).itemsize
        as_gradient = self.head.weight.shape[1] * of_gradient // self.dtype.itemsize
        return Slopes(max(as_gradient, self.rows))

    @torch.no_grad()
    def _each(
        self,
        count: int,
        dense: Gradients,
        weights: Tensor | None,
        slopes: Slopes | None = None,
        *,
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The chunks of the positions from ``start`` on."""
        states, weight = self.operands()
        for rows, product, scores in self._rooms(states, slopes, start):
            of, labels = states[rows], self.labels[rows, None]
            torch.mm(of, weight.t(), out=product)
            if product.dtype != scores.dtype:
                scores.copy_(product)
            if self.head.bias is not None:
                scores.add_(self.head.bias)
            if self.head.cap is not None:
                scores.div_(self.head.cap).tanh_().mul_(self.head.cap)
            with section("candidates"):
                ids, logits = best(scores, labels, count)
            # Before the softmax, which overwrites the logits that the slope is a function of.
            slope = self.head.slope(scores) if dense else None
            # In place: every element is written after its last reading. The log-sum-exp follows
            # from the largest logit and its probability, which is at least 1/V.
            torch.softmax(scores, dim=1, out=scores)
            peak, at = logits.max(dim=1)
            log_z = peak - scores.gather(1, ids.gather(1, at[:, None]))[:, 0].log()
            if dense:
                # The label's part is in the sparse gradient: p - 1 of a token that is all but
                # certain would cancel to noise in a narrow dtype.
                scores.scatter_(1, labels, 0)
                for factor in (slope, weights[rows, None] if weights is not None else None):
                    if factor is not None:
                        scores.mul_(factor)
                if product.dtype != scores.dtype:
                    product.copy_(scores)
                dense.add(rows, scores, product, of, weight)
            yield ids, logits, log_z

    def _rooms(
        self, states: Tensor, slopes: Slopes | None, start: int
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The chunks from ``start`` on, each with room for its products ``[M, V]`` and their
        softmax: the same memory, unless the products are narrow, whose softmax needs float32."""
        size = chunk_rows(len(states) - start, self.rows)
        shared = space = None  # one allocation for all chunks
        for at in range(start, len(states), size):
            rows = slice(at, min(at + size, len(states)))
            many = rows.stop - at
            if slopes is not None and slopes.left >= many:
                product = slopes.place(states.new_empty(many, self.vocabulary))
            else:
                if shared is None:
                    shared = states.new_empty(size, self.vocabulary)
                product = shared[:many]
            scores = product
            if (wider := wide(states).dtype) != states.dtype:
                if space is None:
                    space = states.new_empty(size, self.vocabulary, dtype=wider)
                scores = space[:many]
            yield rows, product, scores
