"""The language task: sparse soft targets over a few candidates, and their loss.

Shapes: N positions in the loss, K candidates, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vpretrain.method.vectors import wide
from vpretrain.system.errors import UserError, user_error


@dataclass(frozen=True)
class SoftTargets:
    """Sparse soft targets: the learner's target distribution at each position.

    Args:
        ids: ``[N, K]`` int64, K distinct token ids a row, the true token first.
        mass: ``[N, K]`` float32 or wider, >= 0. A row sums to the weight of its token, 1 for soft
            targets (eq. 15). The mass is the only control: the loss is linear in it, for soft
            targets and token weights alike.
    """

    ids: Tensor
    mass: Tensor

    def controls(self) -> tuple[Tensor, ...]:
        return (self.mass,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> Self:
        return replace(self, mass=controls[0])


def candidates(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The true token and the learner's K - 1 most probable others (eq. 14, 39), ``[N, K]`` int64,
    distinct within a row; no gradient flows to ``logits`` ``[N, V]``."""
    if count == 1:
        return labels[:, None]
    # Raised to +inf, the true token comes first in the top-k and the others are distinct from it,
    # even if K = V or some logits are -inf (padded vocabularies).
    raised = logits.detach().scatter(1, labels[:, None], torch.inf)
    return raised.topk(count, dim=1).indices


def one_hot(
    labels: Tensor, ids: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> SoftTargets:
    """Targets with mass 1 on the true token, over ``ids`` ``[N, K]`` or the true token alone."""
    ids = labels[:, None] if ids is None else ids
    mass = torch.zeros(ids.shape, dtype=dtype, device=ids.device)
    mass[:, 0] = 1
    return SoftTargets(ids, mass)


def mix(ids: Tensor, proposal: Tensor, gate: Tensor) -> SoftTargets:
    """``(1 - gate) one_hot + gate proposal`` (eq. 15, 40): ``proposal`` ``[N, K]`` sums to 1,
    ``gate`` ``[N]`` in [0, 1]."""
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
    return soft_target_losses(logits, targets).mean()


def soft_target_losses(logits: Tensor, targets: SoftTargets) -> Tensor:
    """The terms of :func:`soft_target_loss`, ``[N]`` in float32 or wider."""
    return expected_losses(targets.mass, candidate_log_probabilities(logits, targets.ids))


def expected_losses(mass: Tensor, log_p: Tensor) -> Tensor:
    """``-sum_k mass[n, k] log_p[n, k]``, ``[N]``; gradients flow to both.

    An impossible candidate (log p = -inf) without mass adds nothing and has no value; with mass on
    it, the loss is infinite.
    """
    # Summed over candidates first: this adds exact zeros at alpha = 0, which keeps it bit for bit
    # equal to one-hot targets.
    return -(mass * without_impossible(mass, log_p)).sum(dim=1)


def without_impossible(mass: Tensor, log_p: Tensor) -> Tensor:
    """``log_p`` with 0 in place of -inf for impossible candidates without mass."""
    return log_p.masked_fill((log_p == -torch.inf) & (mass == 0), 0)


def candidate_log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """``log p(ids[n, k])``, ``[N, K]`` in float32 or wider; gradients flow."""
    logits = wide(logits)
    return logits.gather(1, ids) - logits.logsumexp(dim=1, keepdim=True)


def check_count(count: int, vocabulary: int) -> None:
    """Raises ``UserError`` unless ``count`` candidates are between 1 and the vocabulary's size."""
    if not 1 <= count <= vocabulary:
        message = "there are not as many tokens in the learner's vocabulary"
        where, accepted = "designer.candidates", f"1 to {vocabulary}"
        raise user_error(where, message, value=count, accepted=accepted)


def nothing_to_predict() -> UserError:
    """The error for a batch without a predicted token."""
    message = "no token of this batch is in the loss, so there is nothing to learn from it"
    accepted = "batches with a predicted token; look at masks, lengths and rows of the data"
    return user_error("batch", message, accepted=accepted)
