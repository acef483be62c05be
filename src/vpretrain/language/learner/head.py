"""One pass over the head: loss, candidates and gradients, with logits of one chunk of positions.

At a vocabulary of 152k the logits of a batch are by far its largest tensor, and a plain loss adds a
softmax, a gradient and a copy of them. The loss of token n is linear in its targets: with logits
``z = finish(h W^T + b)``, their log-sum-exp ``lse``, candidates ``c``, mass ``m`` on them,
``w = sum_k m_k`` (the token's weight) and label ``y = c_0``,

    loss_n   = w lse - sum_k m_k z[c_k]
    dloss/dz = w p' - sum_k (m_k - w p_y [k = 0]) onehot(c_k),    p = softmax(z), p' = p with 0 at y

The first part, *dense*, needs only the label and the token's weight. The second, *sparse*, is K
rows of W a token, or one for one-hot targets. The designer's targets are therefore not needed
during the pass over the vocabulary: for each chunk the logits are computed, the best tokens found,
the dense gradient added, and the logits discarded. The sparse part, ``2 N K D`` operations, follows
once the targets are known. The cost, in matrix products of ``2 N V D`` operations (the plain loss
takes 3: logits, gradient to h, gradient to W):

* 3 for one-hot and soft targets (w = 1), and for weights known before the pass (each row of the
  softmax is multiplied by its weight);
* 2 for weights known only later (a value needs a pass over the batch first) while W does not train:
  the rows of the gradient to h are scaled;
* 3 to 4 for weights known only later while W trains: the gradient to W, ``sum_n w_n softmax_n
  h_n^T``, does not follow from the unweighted sum. The softmax is kept for as many positions as
  take no more memory than that gradient (N up to D) or a chunk, and recomputed for the others;
* 1 without a gradient (evaluation);
* 0 for values, ``(W[c_k] - sum_v p_v W_v) . dh`` along a change of the hidden states: the mean row
  is in the dense gradient.

A wrong ``weighted`` costs time only: if the gradient to W was computed without the weights, this is
detected and the gradient is computed again. The label is in the sparse part, in float32 throughout,
since ``p_y - m_0`` of a token the learner is sure of would cancel to noise in a narrow dtype. The
dense part does not depend on K, so candidates without mass do not change a bit of the gradient.

Shapes: N positions in the loss, D hidden width, V vocabulary, K candidates, M positions of a chunk.
Sums are in float32 or wider; products in the dtype of the hidden states, or of autocast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vpretrain.language.learner.head_candidates import candidate_scores
from vpretrain.language.learner.head_chunks import Chunks, Head
from vpretrain.language.learner.head_gradients import Gradients, Slopes, alike
from vpretrain.language.learner.targets import (
    SoftTargets,
    check_count,
    expected_losses,
    nothing_to_predict,
    without_impossible,
)
from vpretrain.method.vectors import wide
from vpretrain.system.errors import user_error
from vpretrain.system.timing import clocked, current_clock, section

Wanted = tuple[bool, ...]
"""Which gradients are computed: to hidden states, weight and bias."""


class HeadPass:
    """Loss, candidates and gradients of one batch, each computed on first use.

    Args:
        hidden: ``[N, D]`` final hidden states at the positions in the loss, with the graph to the
            learner.
        head: the output layer.
        labels: ``[N]`` int64, the true tokens.
        rows: positions of a chunk (see :class:`Chunks`).
        weight: alias of the head's weight that receives the gradient, for a head tied to the input
            embedding (:mod:`vpretrain.language.learner.head_tied`); None: ``head.weight``.
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
        self.chunks = Chunks(hidden, head, labels, rows)
        tracked = torch.is_grad_enabled()
        self.wanted = tuple(
            tracked and t is not None and t.requires_grad for t in (hidden, head.weight, head.bias)
        )
        self._pass: _Pass | None = None  # run by the first method that needs it

    def candidates(self, count: int, *, weighted: bool = False) -> Tensor:
        """The true token and the ``count - 1`` most probable others (eq. 14, 39).

        Args:
            count: K, from 1 to V.
            weighted: whether tokens will get weights that are not known yet: the gradient to the
                weight matrix is then left to the loss. This affects the cost only.

        Returns:
            ``[N, K]`` int64, distinct within a row: the true token, then the others in order of
            decreasing probability.

        Raises:
            UserError: the vocabulary is smaller than K, or there is no position in the loss.
        """
        check_count(count, self.chunks.vocabulary)
        if count == 1:  # nothing to look for
            return self.labels[:, None]
        return self._run(count, _HIDDEN_ONLY if weighted else self.wanted).ids[:, :count]

    def log_p(self, ids: Tensor) -> Tensor:
        """The learner's log probabilities of ``ids`` ``[N, K]``, float32 or wider, no gradient."""
        return self._logits(ids) - self._run(1, _HIDDEN_ONLY).log_z[:, None]

    def token_losses(self, targets: SoftTargets) -> Tensor:
        """``-sum_k mass[n, k] log p(ids[n, k])``, ``[N]`` in float32 or wider.

        Gradients flow to hidden states, weight, bias and mass, once differentiable. For forward
        mode and second derivatives use :meth:`tangent_loss` or the plain path
        (:mod:`vpretrain.language.learner.predictions`). An impossible token (log p = -inf) without
        mass adds nothing to the loss.

        Raises:
            UserError: a row of ``targets.ids`` repeats a token, or does not start with the true
                one.
        """
        self._run(1, self.wanted)
        logits = self._logits(targets.ids)
        bias = self.head.bias
        return _TokenLosses.apply(
            self.hidden, self.weight, bias, targets.mass, self, targets.ids, logits
        )

    def loss(self, targets: SoftTargets) -> Tensor:
        """The mean of :meth:`token_losses` over the N positions (eq. 37); a scalar."""
        self._run(1, self.wanted, targets.mass.detach().sum(dim=1))
        return self.token_losses(targets).mean()

    def tangent_loss(self, states: Tensor, targets: SoftTargets) -> Tensor:
        """The loss at other hidden states, to first order in their difference; it needs no product
        with the vocabulary.

        With ``d log p(v) = (W_v - sum_u p_u W_u) . dh`` it equals :meth:`loss` at the pass's own
        hidden states in value, in all first derivatives, and in the derivatives of these with
        respect to the mass: all that a directional derivative needs.

        Args:
            states: ``[N, D]``, float32 or wider; differentiable in both modes, to any order.
            targets: N rows; gradients flow to the mass. An impossible candidate has no value.
        """
        log_p = self.log_p(targets.ids)
        change = (states - self.hidden.detach()) * self.head.scale
        rise = candidate_scores(change, self.head.weight.detach(), targets.ids)
        if (slope := self.head.slope(self._logits(targets.ids))) is not None:
            rise = rise * slope
        log_p = log_p + rise - (change * self._mean_row).sum(dim=1, keepdim=True)
        return expected_losses(targets.mass, log_p).mean()

    def logits(self) -> Tensor:
        """All logits ``[N, V]`` at once, in the dtype of the products, with their graph."""
        head, dtype = self.head, self.chunks.dtype
        scores = (self.hidden * head.scale).to(dtype) @ self.weight.to(dtype).t()
        return head.finish(scores if head.bias is None else scores + head.bias.to(dtype))

    def _logits(self, ids: Tensor) -> Tensor:
        """Logits ``[N, K]`` of ``ids``: from the pass if it has them, else from the rows of W."""
        result = self._run(1, _HIDDEN_ONLY)
        count = ids.shape[1]
        if torch.equal(ids, result.ids[:, :count]):
            return result.logits[:, :count]
        repeated = (ids.sort(dim=1).values.diff(dim=1) == 0).any()
        if repeated or not torch.equal(ids[:, 0], self.labels):
            message = "a row names a token twice, or its first is not the true token"
            accepted = "K distinct tokens a row, the true one first"
            raise user_error("targets.ids", message, accepted=accepted)
        with torch.no_grad():
            scores = wide(candidate_scores(*self.chunks.operands, ids))
            bias = self.head.bias
            return self.head.finish(scores if bias is None else scores + bias[ids])

    @cached_property
    @torch.no_grad()
    def _mean_row(self) -> Tensor:
        """``sum_v p_v W_v`` of every position, ``[N, D]``; under a soft cap each term times the
        cap's slope.

        Computed as the dense gradient to the hidden states plus the label's row, which it excludes.
        """
        result = self._run(1, _HIDDEN_ONLY)
        dense = result.dense.hidden
        if dense is None or result.weights is not None:  # given to autograd, or already weighted
            dense = self.chunks.gradients(_HIDDEN_ONLY, None).hidden
            assert dense is not None
        label = (result.logits[:, 0] - result.log_z).exp()
        if (slope := self.head.slope(result.logits[:, 0])) is not None:
            label = label * slope
        rows = self.head.weight.detach()[self.labels].to(dense.dtype)
        return dense + label[:, None] * rows

    def _run(self, count: int, wanted: Wanted, weights: Tensor | None = None) -> _Pass:
        """The pass over the vocabulary, run on the first call. If it found fewer than ``count``
        candidates, a second pass without gradients finds more.

        Args:
            count: K.
            wanted: gradients that the first pass computes, among ``self.wanted``.
            weights: ``[N]``, the tokens' weights if they are known; None: 1.
        """
        if len(self.labels) == 0:
            raise nothing_to_predict()
        if self._pass is None:
            # Weights that are equal up to rounding are left out: they only scale the gradients.
            known = None if weights is None or alike(weights) else weights
            wanted = tuple(a and b for a, b in zip(wanted, self.wanted, strict=True))
            dense = self.chunks.empty(wanted)
            weight_later = self.wanted[1] and not wanted[1] and dense and known is None
            slopes = self.chunks.slopes() if weight_later else None
            with section("loss"):
                result = self.chunks.run(count, dense, known, slopes)
            self._pass = _Pass(*result, dense, known, slopes)
        elif self._pass.ids.shape[1] < count:
            with section("loss"):
                ids, logits, log_z = self.chunks.run(count, Gradients(), None)
            self._pass = replace(self._pass, ids=ids, logits=logits, log_z=log_z)
        return self._pass

    def gradients(
        self, task: SoftTargets, logits: Tensor, log_p: Tensor, upstream: Tensor, wanted: Wanted
    ) -> Gradients:
        """Gradients of ``sum_n upstream[n] loss_n`` to scaled hidden states, weight and bias, in
        float32 or wider; ``logits`` and ``log_p`` ``[N, K]`` belong to the task's candidates."""
        mass = task.mass
        weight_sum = mass.sum(dim=1)
        dense = self._dense(upstream * weight_sum, wanted)
        sparse = mass.clone()
        sparse[:, 0] -= weight_sum * log_p[:, 0].exp()
        sparse *= upstream[:, None]
        if (slope := self.head.slope(logits)) is not None:
            sparse *= slope
        live = mass.any(dim=0)  # only the true token under one-hot targets
        live[0] = True
        dense.subtract(task.ids[:, live], sparse[:, live], *self.chunks.operands)
        return dense

    def _dense(self, weights: Tensor, wanted: Wanted) -> Gradients:
        """The dense gradients under weights ``[N]``: those of the pass if scaling them is enough,
        the others recomputed."""
        result = self._run(1, self.wanted)
        # Autograd takes over gradients without a copy, which at [V, D] would be the largest tensor
        # of the step. From here on the pass no longer owns its gradients.
        dense = result.dense.release()
        known = torch.ones_like(weights)
        if result.weights is not None:
            known = result.weights.to(weights.dtype)
        counted = known != 0
        if (weights[~counted] != 0).any():
            dense = Gradients()  # terms multiplied by a weight of zero cannot be recovered
        ratios = weights[counted] / known[counted]
        if not alike(ratios):  # these are sums over tokens, which only one factor can rescale
            dense.weight = dense.bias = None
        dense.scale(torch.zeros_like(weights).masked_scatter(counted, ratios), ratios.mean())
        missing = tuple(want and not has for want, has in zip(wanted, dense.has, strict=True))
        if any(missing):
            dense.take(self.chunks.gradients(missing, weights, result.slopes))
        return dense


_HIDDEN_ONLY: Wanted = (True, False, False)


@dataclass(frozen=True)
class _Pass:
    """Results of a pass over the vocabulary.

    Args:
        ids: ``[N, K]``, candidates.
        logits: ``[N, K]``, logits of the candidates.
        log_z: ``[N]``, log-sum-exp of the logits.
        dense: dense gradients of the pass, until autograd takes them over.
        weights: ``[N]``, the tokens' weights in these gradients; None: 1.
        slopes: softmax rows kept for a gradient to the weight matrix under later weights, or None.
    """

    ids: Tensor
    logits: Tensor
    log_z: Tensor
    dense: Gradients
    weights: Tensor | None
    slopes: Slopes | None


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mass: Tensor,
        head_pass: HeadPass,
        ids: Tensor,
        logits: Tensor,
    ) -> Tensor:
        log_p = logits - head_pass._run(1, _HIDDEN_ONLY).log_z[:, None]
        # Not all of them are read, but saving them lets autograd detect in-place changes.
        ctx.save_for_backward(hidden, weight, bias, mass, log_p)
        ctx.head_pass, ctx.ids, ctx.logits = head_pass, ids, logits
        ctx.clock = current_clock()  # the backward pass may run in another thread
        return expected_losses(mass, log_p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, mass, log_p = ctx.saved_tensors
        to_hidden, to_weight, to_bias, to_mass = ctx.needs_input_grad[:4]
        mass_gradient = None
        if to_mass:
            mass_gradient = -upstream[:, None] * without_impossible(mass, log_p)
        if not (to_hidden or to_weight or to_bias):
            return None, None, None, mass_gradient, None, None, None
        mass, upstream = mass.to(log_p.dtype), upstream.to(log_p.dtype)
        with clocked(ctx.clock), section("loss"):
            task, wanted = SoftTargets(ctx.ids, mass), (to_hidden, to_weight, to_bias)
            gradients = ctx.head_pass.gradients(task, ctx.logits, log_p, upstream, wanted)
        hidden_gradient = weight_gradient = bias_gradient = None
        if to_hidden:
            hidden_gradient = (gradients.hidden * ctx.head_pass.head.scale).to(hidden.dtype)
        if to_weight:
            weight_gradient = gradients.weight.to(weight.dtype)
        if to_bias:
            bias_gradient = gradients.bias.to(bias.dtype)
        return hidden_gradient, weight_gradient, bias_gradient, mass_gradient, None, None, None
