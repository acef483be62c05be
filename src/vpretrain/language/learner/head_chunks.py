"""The output layer, and passes over its vocabulary that hold the logits of one chunk of positions.

Shapes: N positions in the loss, M of a chunk, D hidden width, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from vpretrain.language.learner.head_candidates import best
from vpretrain.language.learner.head_gradients import Gradients, Slopes
from vpretrain.method.vectors import wide
from vpretrain.system.devices import for_kind
from vpretrain.system.errors import user_error
from vpretrain.system.timing import section

CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**27}
"""Number of logits of a chunk (``M V``), by kind of device; other kinds use ``cuda``. W is read
three times a chunk, so smaller chunks are slower. On a CPU 2**25 (220 positions at V = 152k,
134 MB) is within noise of larger values (benchmarks/head.py)."""


def chunk_rows(positions: int, rows: int) -> int:
    """Number of positions of a chunk, at least 1: at most ``rows``, and such that the chunks have
    almost equal sizes."""
    return max(1, -(-positions // max(1, -(-positions // rows))))


@dataclass(frozen=True)
class Head:
    """The output layer: logits are ``finish(scale h W^T + b)``, with finish(z) = z or
    ``cap tanh(z / cap)``.

    Args:
        weight: ``[V, D]``; may have a graph of its own.
        bias: ``[V]`` or None; -inf excludes a token.
        scale: factor of the scores before the bias (Cohere, Granite).
        cap: > 0, soft cap of the logits (Gemma 2); None for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, module: nn.Module, *, scale: float = 1.0, cap: float | None = None) -> Head:
        """The head of a model's output layer; ``UserError`` if it is not a plain linear layer."""
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
        """Logits of scores: applies the soft cap."""
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap

    def slope(self, logits: Tensor) -> Tensor | None:
        """The derivative of logits with respect to scores, elementwise; None if it is 1."""
        return None if self.cap is None else 1 - (logits / self.cap).square()


class Chunks:
    """Passes over the vocabulary, a chunk of positions at a time.

    Args:
        hidden: ``[N, D]``.
        head: the output layer.
        labels: ``[N]`` int64, the true tokens.
        rows: M, positions of a chunk; None derives it from ``CHUNK_LOGITS``.
    """

    def __init__(self, hidden: Tensor, head: Head, labels: Tensor, rows: int | None) -> None:
        self.hidden, self.head, self.labels = hidden, head, labels
        self.vocabulary = len(head.weight)
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        self.rows = rows or max(1, for_kind(CHUNK_LOGITS, device) // self.vocabulary)

    @cached_property
    def operands(self) -> tuple[Tensor, Tensor]:
        """The factors of the scores: scaled hidden states and weight, detached.

        Under autocast they are copies, of which a large weight's costs as much as a product."""
        states, weight = self.hidden.detach() * self.head.scale, self.head.weight.detach()
        return states.to(self.dtype), weight.to(self.dtype)

    def run(
        self,
        count: int,
        dense: Gradients,
        weights: Tensor | None,
        slopes: Slopes | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates ``[N, K]``, their logits, and the log-sum-exp ``[N]``; writes the gradients
        into ``dense``.

        Args:
            count: K; at least 2 are returned if the vocabulary has as many.
            dense: gradients to fill: to hidden states, weight and bias.
            weights: ``[N]``, the tokens' weights in these gradients; None: 1.
            slopes: keeps the softmax of the first positions.
        """
        # With the best other token, the candidates contain the largest logit, and finding it costs
        # no more than finding the maximum.
        parts = self._process(max(count, min(2, self.vocabulary)), dense, weights, slopes)
        ids, logits, log_z = (torch.cat(part) for part in zip(*parts, strict=True))
        return ids, logits, log_z

    def gradients(
        self, wanted: tuple[bool, ...], weights: Tensor | None, slopes: Slopes | None = None
    ) -> Gradients:
        """The dense gradients alone. If the gradient to the hidden states is not wanted, the
        ``slopes`` kept by an earlier pass are consumed rather than recomputed."""
        dense, start = self.empty(wanted), 0
        if slopes is not None and weights is not None and not wanted[0]:
            states, weight = self.operands
            for kept in slopes.release():
                rows = slice(start, start := start + len(kept))
                dense.add(rows, kept, kept, states[rows], weight, weights[rows])
        for _ in self._process(min(2, self.vocabulary), dense, weights, start=start):
            pass
        return dense

    def empty(self, wanted: tuple[bool, ...]) -> Gradients:
        """Uninitialised gradients, those that are wanted."""
        parts = (self.hidden, self.head.weight, self.head.bias)
        dtype = torch.promote_types(self.dtype, torch.float32)
        hidden, weight, bias = (
            torch.empty_like(t, dtype=dtype) if t is not None and w else None
            for t, w in zip(parts, wanted, strict=True)
        )
        return Gradients(hidden, weight, bias)

    def slopes(self) -> Slopes:
        """Empty :class:`Slopes` for as many positions as fit in the memory of the gradient to the
        weight matrix, or for one chunk if that is more."""
        of_gradient = torch.promote_types(self.dtype, torch.float32).itemsize
        as_gradient = self.head.weight.shape[1] * of_gradient // self.dtype.itemsize
        return Slopes(max(as_gradient, self.rows))

    @torch.no_grad()
    def _process(
        self,
        count: int,
        dense: Gradients,
        weights: Tensor | None,
        slopes: Slopes | None = None,
        *,
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Processes the chunks of the positions from ``start``; yields candidates, their logits and
        the log-sum-exp of each."""
        states, weight = self.operands
        for rows, product, scores in self._buffers(states, slopes, start):
            hidden, labels = states[rows], self.labels[rows, None]
            torch.mm(hidden, weight.t(), out=product)
            if product.dtype != scores.dtype:
                scores.copy_(product)
            if self.head.bias is not None:
                scores.add_(self.head.bias)
            if self.head.cap is not None:
                scores.div_(self.head.cap).tanh_().mul_(self.head.cap)
            with section("candidates"):
                ids, logits = best(scores, labels, count)
            # Before the softmax, which overwrites the logits that the slope depends on.
            slope = self.head.slope(scores) if dense else None
            # In place: every element is written after it was last read. The log-sum-exp follows
            # from the largest logit and its probability, which is at least 1/V.
            torch.softmax(scores, dim=1, out=scores)
            peak, at = logits.max(dim=1)
            log_z = peak - scores.gather(1, ids.gather(1, at[:, None]))[:, 0].log()
            if dense:
                # The label's part is in the sparse gradient: p - 1 of an almost certain token
                # would cancel to noise in a narrow dtype.
                scores.scatter_(1, labels, 0)
                if slope is not None:
                    scores.mul_(slope)
                if product.dtype != scores.dtype:
                    product.copy_(scores)
                of_rows = None if weights is None else weights[rows]
                dense.add(rows, scores, product, hidden, weight, of_rows)
            yield ids, logits, log_z

    def _buffers(
        self, states: Tensor, slopes: Slopes | None, start: int
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields the chunks from ``start``, each with buffers ``[M, V]`` for its products and their
        softmax. Both are the same memory, unless narrow products need a float32 softmax."""
        size = chunk_rows(len(states) - start, self.rows)
        products = softmax = None  # one allocation for all chunks
        for at in range(start, len(states), size):
            rows = slice(at, min(at + size, len(states)))
            count = rows.stop - at
            if slopes is not None and slopes.left < count:
                slopes = None  # only the first positions are kept, even if a short last chunk fits
            if slopes is not None:
                product = slopes.place(states.new_empty(count, self.vocabulary))
            else:
                if products is None:
                    products = states.new_empty(size, self.vocabulary)
                product = products[:count]
            scores = product
            if (wider := wide(states).dtype) != states.dtype:
                if softmax is None:
                    softmax = states.new_empty(size, self.vocabulary, dtype=wider)
                scores = softmax[:count]
            yield rows, product, scores
