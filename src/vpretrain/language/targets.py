"""The language task: sparse soft targets over a few candidates, their loss, and the closed-form rule for them.

Shapes: N positions in the loss, K candidates, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SoftTargets:
    """What the learner is asked to predict at each position.

    Args:
        ids: ``[N, K]`` int64, K distinct token ids a row, the true token first.
        mass: ``[N, K]`` float32 or wider, >= 0. A row sums to the weight of its token: 1 for soft targets (eq. 15). One
            control covers both surfaces, since the loss is linear in it either way.
    """

    ids: Tensor
    mass: Tensor

    def controls(self) -> tuple[Tensor, ...]:
        """The mass alone: ids are chosen by the learner (eq. 14) and carry no gradient."""
        return (self.mass,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> SoftTargets:
        """The same candidates with another mass."""
        return SoftTargets(self.ids, controls[0])


def candidates(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The true token and the learner's ``count - 1`` most probable others (eq. 14, 39).

    Args:
        logits: ``[N, V]``; no gradient flows.
        labels: ``[N]`` int64, the true next tokens.
        count: K, from 1 to V.

    Returns:
        ``[N, K]`` int64, distinct within a row, the true token first.
    """
    if count == 1:
        return labels[:, None]
    # With the true token raised above all, one top-k gives it first and the others distinct, even if K = V or some
    # logits are -inf (padded vocabularies).
    raised = logits.detach().scatter(1, labels[:, None], torch.inf)
    return raised.topk(count, dim=1).indices


def one_hot(
    labels: Tensor, count: int = 1, ids: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> SoftTargets:
    """All mass on the true token, over ``ids`` (``[N, count]``) or over the true token alone."""
    ids = labels[:, None] if ids is None else ids
    mass = torch.zeros(ids.shape, dtype=dtype, device=ids.device)
    mass[:, 0] = 1
    return SoftTargets(ids, mass)


def mix(ids: Tensor, proposal: Tensor, gate: Tensor) -> SoftTargets:
    """``(1 - gate) one_hot + gate proposal`` (eq. 15, 40): ``proposal`` ``[N, K]`` sums to 1, ``gate`` ``[N]`` in [0, 1]."""
    truth = torch.zeros_like(proposal)
    truth[:, 0] = 1
    return SoftTargets(ids, (1 - gate[:, None]) * truth + gate[:, None] * proposal)


def soft_target_loss(logits: Tensor, targets: SoftTargets) -> Tensor:
    """``-(1/N) sum_n sum_k mass[n, k] log p(ids[n, k])`` (eq. 37), in float32 or wider; a scalar.

    The slow definition::

        for n in range(N):
            for k in range(K):
                loss -= mass[n, k] * log_softmax(logits[n])[ids[n, k]] / N

    Args:
        logits: ``[N, V]``; gradients flow.
        targets: N rows; gradients flow to the mass.
    """
    log_p = candidate_log_probabilities(logits, targets.ids)
    # Over candidates first: adding exact zeros there keeps alpha = 0 bit for bit equal to one-hot targets.
    return -(targets.mass * log_p).sum(dim=1).mean()


def candidate_log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """``log p(ids[n, k])``, ``[N, K]`` in float32 or wider; gradients flow."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(1, ids) - logits.logsumexp(dim=1, keepdim=True)


def anchored(
    values: Tensor, log_p: Tensor, *, temperature: float, clip: float, gate_max: float
) -> tuple[Tensor, Tensor]:
    """The best targets for given token values under a KL anchor to the learner (ours; the paper ascends instead).

    ``argmax_r sum_v r(v) z(v) - KL(r || p)`` over the candidates is ``r ~ p exp(z)`` with ``z = values / temperature``:
    value where the learner already sees a possibility, no push onto tokens that it rightly rules out. The gate opens
    with the expected gain of r over the true token, ``gate_max * clip(gain, 0, 1)`` in units of z, so that
    temperature -> 0 with ``clip = inf`` puts ``gate_max`` on the most valuable candidate: the best that any target under
    that bound can do.

    Args:
        values: ``[N, K]``, ``s_t(v)`` of the candidates in standard deviations over the batch, the true token first.
        log_p: ``[N, K]``, the learner's log probabilities of them.
        temperature: tau > 0, in the units of ``values``.
        clip: bound on ``|z|``; ``inf`` for none.
        gate_max: ``alpha_max`` in [0, 1].

    Returns:
        ``(r, gate)``: ``[N, K]`` summing to 1, and ``[N]`` in [0, gate_max].
    """
    z = (values / temperature).clamp(-clip, clip)
    proposal = torch.softmax(log_p + z, dim=1)
    gain = (proposal * z).sum(dim=1) - z[:, 0]
    return proposal, gate_max * gain.clamp(0, 1)


def standardised(values: Tensor) -> Tensor:
    """Values over their standard deviation: the scale of the loss and of the direction drops out."""
    return values / values.std(correction=0).clamp_min(torch.finfo(values.dtype).tiny)
