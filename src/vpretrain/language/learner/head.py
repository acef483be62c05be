"""One pass over the head: loss, candidates and gradients without ever holding logits of more than a
chunk of positions.

At a vocabulary of 152k the logits of a batch are by far its largest tensor, and a softmax, a
gradient and a copy of them come on top. The loss of token n is linear in its targets: with logits
``z = finish(h W^T + b)``, their log-sum-exp ``lse``, candidates ``c``, mass ``m`` on them and
``w = sum_k m_k`` (the token's weight), label ``y = c_0``,

    loss_n   = w lse - sum_k m_k z[c_k]
    dloss/dz = w p' - sum_k (m_k - w p_y [k = 0]) onehot(c_k),    p = softmax(z), p' = p with 0 at y

The first part, *dense*, needs the label and the token's weight and no target. The second, *sparse*,
is K rows of W a token, one for one-hot targets. So what a designer makes of the candidates need not
be known when the vocabulary is passed over: logits of a chunk are made, its best tokens looked up,
its dense gradient added, and they are gone. The sparse part, ``2 N K D`` operations, follows when
the targets are there. In matrix products of ``2 N V D`` operations, where the plain loss takes 3
(logits, gradient to h, gradient to W):

* 3 for one-hot and for soft targets (w = 1), and for weights that are known before the pass (a row
  of the softmax times its weight);
* 2 for weights that come later (a value needs a look at the batch first) while W does not train: a
  row of the gradient to h is scaled;
* 4 for weights that come later while W trains: the gradient to W, ``sum_n w_n softmax_n h_n^T``,
  cannot be had from the sum of its terms, so that the logits are made again with it;
* 1 without a gradient (evaluation);
* 0 for values, ``(W[c_k] - sum_v p_v W_v) . dh`` along a change of the hidden states: the mean row
  is in the dense gradient.

Nobody has to be trusted with the choice: weights that the gradient to W was made without are seen,
and it is made again. The label is in the sparse part, in float32 throughout, since ``p_y - m_0`` of
a token that the learner is sure of would cancel to noise in a narrow dtype. What is dense does not
depend on K, so that candidates without mass leave the gradient bit for bit.

Shapes: N positions in the loss, D hidden width, V vocabulary, K candidates, M positions of a chunk.
Sums run in float32 or wider; products in the dtype of the hidden states, or in autocast's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vpretrain.language.learner.head_candidates import best, candidate_scores
from vpretrain.language.learner.head_gradients import Gradients, alike
from vpretrain.language.learner.targets import SoftTargets, check_count, nothing_to_predict
from vpretrain.method.vectors import wide
from vpretrain.system.errors import user_error
from vpretrain.system.timing import clocked, current_clock, section

CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**27}
"""Logits of a chunk (``M V``), by kind of device; others as ``cuda``. W is read three times a
chunk: fewer positions, less speed. On a CPU 2**25 (220 positions at V = 152k, 134 MB) is within
noise of any more (benchmarks/head.py).
"""


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
        """From a model's output layer.

        Raises:
            UserError: it is not a plain linear layer, so its weight alone does not say what it
                does.
        """
        if type(module) is not nn.Linear or (scale != 1 and module.bias is not None):
            raise user_error(
                "learner.model",
                "the output layer is no plain linear layer, so the loss cannot be taken in "
                "chunks of the vocabulary; take "
                "it out of learner.lora.targets if it is there",
                value=type(module).__name__,
                accepted="torch.nn.Linear (without a bias where the scores are scaled)",
            )
        return cls(module.weight, module.bias, scale, cap)


class HeadPass:
    """What the head makes of one batch, each part computed when it is first asked for.

    Args:
        hidden: ``[N, D]`` final hidden states at the positions in the loss, with the graph to the
            learner.
        head: the output layer.
        labels: ``[N]`` int64, the true tokens.
        rows: M, positions of a chunk; at most N are taken. The default follows ``CHUNK_LOGITS``.
        weight: an alias of the head's weight that takes its gradient, where a lookup reads the
            same matrix (:mod:`vpretrain.language.learner.head_tied`); None: its own.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        labels: Tensor,
        *,
        rows: int | None = None,
        weight: Tensor | None = None,
    ) -> None:
        self.hidden, self.head, self.labels = hidden, head, labels
        self.weight = head.weight if weight is None else weight
        self.vocabulary = len(head.weight)
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        chunk = CHUNK_LOGITS.get(device, CHUNK_LOGITS["cuda"])
        self.rows = rows or max(1, chunk // self.vocabulary)
        tracked = torch.is_grad_enabled()
        self.wanted = tuple(
            tracked and t is not None and t.requires_grad for t in (hidden, head.weight, head.bias)
        )
        self._pass: _Pass | None = None  # made by whichever method is called first

    def candidates(self, count: int, *, weighted: bool = False) -> Tensor:
        """The true token and the ``count - 1`` most probable others (eq. 14, 39).

        Args:
            count: K, from 1 to V.
            weighted: whether tokens will have weights, which are not known yet: the gradient to the
                weight matrix then comes with the loss. A matter of cost alone.

        Returns:
            ``[N, K]`` int64, distinct within a row, the true token first, the others from the most
            probable down.

        Raises:
            UserError: the vocabulary is smaller than K, or there is no position in the loss (the
                other methods say so too).
        """
        check_count(count, self.vocabulary)
        if count == 1:  # nothing to look for
            return self.labels[:, None]
        return self._passed(count, _HIDDEN if weighted else self.wanted).ids[:, :count]

    def log_p(self, ids: Tensor) -> Tensor:
        """The learner's log probabilities of ``ids`` ``[N, K]``, in float32 or wider; no gradient
        flows.
        """
        return self._logits(ids) - self._passed(1, _HIDDEN).log_z[:, None]

    def token_losses(self, targets: SoftTargets) -> Tensor:
        """``-sum_k mass[n, k] log p(ids[n, k])``, ``[N]`` in float32 or wider.

        Gradients flow to hidden states, weight, bias and mass, once differentiable: for forward
        mode and second derivatives there is :meth:`tangent_loss`, and the plain path
        (:mod:`vpretrain.language.learner.predictions`). No mass on a token that is impossible (log
        p = -inf) costs nothing.

        Raises:
            UserError: a row of ``targets.ids`` names a token twice, or does not begin with the true
                one.
        """
        self._passed(1, self.wanted)
        logits = self._logits(targets.ids)
        bias = self.head.bias
        return _TokenLosses.apply(
            self.hidden, self.weight, bias, targets.mass, self, targets.ids, logits
        )

    def loss(self, targets: SoftTargets) -> Tensor:
        """The mean of :meth:`token_losses` over the N positions (eq. 37); a scalar."""
        self._passed(1, self.wanted, targets.mass.detach().sum(dim=1))
        return self.token_losses(targets).mean()

    def tangent_loss(self, states: Tensor, targets: SoftTargets) -> Tensor:
        """The loss at other hidden states, to first order in what they differ by: no product with
        the vocabulary.

        With ``d log p(v) = (W_v - sum_u p_u W_u) . dh`` it has the value and every first derivative
        of :meth:`loss` at its own hidden states, the derivatives of these in the mass included: all
        that a directional derivative asks for.

        Args:
            states: ``[N, D]``, float32 or wider; gradients flow, in either mode and as often as
                asked.
            targets: N rows; gradients flow to the mass. A candidate that is impossible is worth
                nothing.
        """
        log_p = self.log_p(targets.ids)
        change = (states - self.hidden.detach()) * self.head.scale
        rise = candidate_scores(change, self.head.weight.detach(), targets.ids)
        if self.head.cap is not None:
            rise = rise * self._slope(self._logits(targets.ids))
        log_p = log_p + rise - (change * self._mean_row).sum(dim=1, keepdim=True)
        return -(targets.mass * log_p.masked_fill(log_p == -torch.inf, 0)).sum(dim=1).mean()

    def logits(self) -> Tensor:
        """``[N, V]`` at once, in the dtype of the products, with their graph: for what looks at
        every token.
        """
        head = self.head
        scores = (self.hidden * head.scale).to(self.dtype) @ self.weight.to(self.dtype).t()
        return self._finish(scores if head.bias is None else scores + head.bias.to(self.dtype))

    def _logits(self, ids: Tensor) -> Tensor:
        """Of the pass itself where it has them, from the rows of W otherwise; ``[N, K]``."""
        made = self._passed(1, _HIDDEN)
        count = ids.shape[1]
        if torch.equal(ids, made.ids[:, :count]):
            return made.logits[:, :count]
        if (ids.sort(dim=1).values.diff(dim=1) == 0).any() or not torch.equal(
            ids[:, 0], self.labels
        ):
            raise user_error(
                "targets.ids",
                "a row names a token twice, or its first is not the true token",
                accepted="K distinct tokens a row, the true one first",
            )
        with torch.no_grad():
            states, weight = self._operands()
            scores = wide(candidate_scores(states, weight, ids))
            return self._finish(scores if self.head.bias is None else scores + self.head.bias[ids])

    @cached_property
    @torch.no_grad()
    def _mean_row(self) -> Tensor:
        """``sum_v p_v W_v`` of every position, ``[N, D]``, times the slope of a soft bound.

        It is the dense gradient to the hidden states and the label's row, which that is without.
        """
        made = self._passed(1, _HIDDEN)
        dense = made.dense.hidden
        if dense is None or made.weights is not None:  # handed to autograd, or with weights in it
            dense = self._dense_gradients(_HIDDEN, None).hidden
            assert dense is not None
        label = (made.logits[:, 0] - made.log_z).exp()
        if self.head.cap is not None:
            label = label * self._slope(made.logits[:, 0])
        rows = self.head.weight.detach()[self.labels].to(dense.dtype)
        return dense + label[:, None] * rows

    def _empty(self, wanted: tuple[bool, ...]) -> Gradients:
        parts = (self.hidden, self.head.weight, self.head.bias)
        dtype = torch.promote_types(self.dtype, torch.float32)
        hidden, weight, bias = (
            torch.empty_like(t, dtype=dtype) if t is not None and w else None
            for t, w in zip(parts, wanted, strict=True)
        )
        return Gradients(hidden, weight, bias)

    def _finish(self, scores: Tensor) -> Tensor:
        return (
            scores if self.head.cap is None else torch.tanh(scores / self.head.cap) * self.head.cap
        )

    def _slope(self, logits: Tensor) -> Tensor:
        """Of the logits over the scores, where there is a soft bound."""
        assert self.head.cap is not None
        return 1 - (logits / self.head.cap).square()

    def _operands(self) -> tuple[Tensor, Tensor]:
        """Hidden states, scaled, and weight: what is multiplied."""
        return (self.hidden.detach() * self.head.scale).to(
            self.dtype
        ), self.head.weight.detach().to(self.dtype)

    def _passed(self, count: int, wanted: tuple[bool, ...], weights: Tensor | None = None) -> _Pass:
        """The pass over the vocabulary; where it did not look for as many candidates, another one
        that makes no gradients.

        Args:
            count: K.
            wanted: gradients that the first pass makes along the way, of those that are ever
                wanted.
            weights: ``[N]`` of the tokens, where they are known; None: 1.
        """
        if len(self.labels) == 0:
            raise nothing_to_predict()
        if self._pass is None:
            known = None if weights is None or alike(weights) else weights
            wanted = tuple(a and b for a, b in zip(wanted, self.wanted, strict=True))
            self._pass = self._first_pass(count, self._empty(wanted), known)
        elif self._pass.ids.shape[1] < count:
            again = self._first_pass(count, Gradients(), None)
            self._pass = replace(self._pass, ids=again.ids, logits=again.logits, log_z=again.log_z)
        return self._pass

    def _first_pass(self, count: int, dense: Gradients, weights: Tensor | None) -> _Pass:
        # The best other token tells the largest logit, which costs no more than to look for that
        # alone.
        count = max(count, min(2, self.vocabulary))
        with section("loss"):
            ids, logits, log_z = (
                torch.cat(part) for part in zip(*self._chunks(count, dense, weights), strict=True)
            )
        return _Pass(ids, logits, log_z, dense, weights)

    def _dense_gradients(self, wanted: tuple[bool, ...], weights: Tensor | None) -> Gradients:
        """The dense part alone, under weights ``[N]``."""
        dense = self._empty(wanted)
        for _ in self._chunks(min(2, self.vocabulary), dense, weights):
            pass
        return dense

    @torch.no_grad()
    def _chunks(
        self, count: int, dense: Gradients, weights: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Passes over the vocabulary, a chunk of positions at a time, and adds to ``dense``.

        Yields:
            candidates ``[M, count]``, their logits, and the log-sum-exp ``[M]`` of each chunk.
        """
        states, weight = self._operands()
        chunks = -(-len(states) // self.rows)
        size = -(-len(states) // chunks)  # no small rest at the end
        products = states.new_empty(size, self.vocabulary)
        space = wide(products)  # the same memory, unless the dtype is narrow
        for start in range(0, len(states), size):
            rows = slice(start, min(start + size, len(states)))
            of, labels = states[rows], self.labels[rows, None]
            product, scores = products[: len(of)], space[: len(of)]
            torch.mm(of, weight.t(), out=product)
            if product.dtype != scores.dtype:
                scores.copy_(product)
            if self.head.bias is not None:
                scores.add_(self.head.bias)
            if self.head.cap is not None:
                scores.div_(self.head.cap).tanh_().mul_(self.head.cap)
            with section("candidates"):
                ids, logits = best(scores, labels, count)
            slope = self._slope(scores) if self.head.cap is not None and dense else None
            # In place: every element is written after its last reading. The log-sum-exp follows
            # from the largest logit and its probability, which is at least 1/V.
            torch.softmax(scores, dim=1, out=scores)
            peak, at = logits.max(dim=1)
            log_z = peak - scores.gather(1, ids.gather(1, at[:, None]))[:, 0].log()
            if dense:
                scores.scatter_(1, labels, 0)
                for factor in (slope, weights[rows, None] if weights is not None else None):
                    if factor is not None:
                        scores.mul_(factor)
                if product.dtype != scores.dtype:
                    product.copy_(scores)
                dense.add(rows, scores, product, of, weight)
            yield ids, logits, log_z

    def gradients(
        self,
        ids: Tensor,
        mass: Tensor,
        logits: Tensor,
        log_p: Tensor,
        upstream: Tensor,
        wanted: tuple[bool, ...],
    ) -> Gradients:
        """Of ``sum_n upstream[n] loss_n`` to scaled hidden states, weight and bias, in float32 or
        wider.
        """
        weight_sum = mass.sum(dim=1)
        dense = self._weighted(upstream * weight_sum, wanted)
        sparse = mass.clone()
        sparse[:, 0] -= weight_sum * log_p[:, 0].exp()
        sparse *= upstream[:, None]
        if self.head.cap is not None:
            sparse *= self._slope(logits)
        live = mass.any(dim=0)  # the true token alone where the targets are one-hot
        live[0] = True
        dense.subtract(ids[:, live], sparse[:, live], *self._operands())
        return dense

    def _weighted(self, weights: Tensor, wanted: tuple[bool, ...]) -> Gradients:
        """The dense part under weights ``[N]``: what was made along the way where it is a multiple
        of it, the rest anew.
        """
        made = self._passed(1, self.wanted)
        # Autograd keeps what it is given without a copy, which at [V, D] would be the largest
        # tensor of the step: from here on the pass has its gradients no longer.
        dense = made.dense.handed_over()
        of = torch.ones_like(weights) if made.weights is None else made.weights.to(weights.dtype)
        counted = of != 0
        if (weights[~counted] != 0).any():
            dense = Gradients()
        ratios = weights[counted] / of[counted]
        if not alike(ratios):
            dense.weight = dense.bias = None
        dense.scale(torch.zeros_like(weights).masked_scatter(counted, ratios), ratios.mean())
        missing = tuple(want and not has for want, has in zip(wanted, dense.has, strict=True))
        if any(missing):
            dense.take(self._dense_gradients(missing, weights))
        return dense


_HIDDEN = (True, False, False)
"""The gradient to the hidden states alone."""


@dataclass(frozen=True)
class _Pass:
    """What a pass over the vocabulary found.

    Args:
        ids: ``[N, K]``, candidates.
        logits: ``[N, K]``, theirs.
        log_z: ``[N]``, the log-sum-exp of every position.
        dense: the dense gradients made along the way, until autograd has them.
        weights: ``[N]`` of the tokens that are in them; None: 1.
    """

    ids: Tensor
    logits: Tensor
    log_z: Tensor
    dense: Gradients
    weights: Tensor | None


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mass: Tensor,
        of: HeadPass,
        ids: Tensor,
        logits: Tensor,
    ) -> Tensor:
        log_p = logits - of._passed(1, _HIDDEN).log_z[:, None]
        ctx.save_for_backward(
            hidden, weight, bias, mass, log_p
        )  # which sees to it that nobody changes them meanwhile
        ctx.of, ctx.ids, ctx.logits = of, ids, logits
        ctx.clock = current_clock()  # the backward pass may run in a thread of its own
        # Over candidates first: adding exact zeros there keeps alpha = 0 bit for bit equal to
        # one-hot targets.
        return -torch.where(mass == 0, 0, mass * log_p).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, mass, log_p = ctx.saved_tensors
        to_hidden, to_weight, to_bias, to_mass = ctx.needs_input_grad[:4]
        slopes = -upstream[:, None] * log_p if to_mass else None
        if not (to_hidden or to_weight or to_bias):
            return None, None, None, slopes, None, None, None
        mass, upstream = mass.to(log_p.dtype), upstream.to(log_p.dtype)
        with clocked(ctx.clock), section("loss"):
            found = ctx.of.gradients(
                ctx.ids, mass, ctx.logits, log_p, upstream, (to_hidden, to_weight, to_bias)
            )
        return (
            (found.hidden * ctx.of.head.scale).to(hidden.dtype) if to_hidden else None,
            found.weight.to(weight.dtype) if to_weight else None,
            found.bias.to(bias.dtype) if to_bias else None,
            slopes,
            None,
            None,
            None,
        )
