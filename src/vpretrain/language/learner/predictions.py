"""What the learner says of the predicted tokens, behind one role: as logits, or by passes over the
head (head.py).

Shapes: N positions in the loss, D hidden width, V vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from vpretrain.language.learner.head import Head
from vpretrain.language.learner.suffix import Anatomy
from vpretrain.language.learner.targets import (
    SoftTargets,
    candidate_log_probabilities,
    candidates,
    check_count,
    nothing_to_predict,
    soft_target_losses,
)
from vpretrain.system.timing import section

WHOLE_LOGITS = 2**22
"""Logits (``N V``) up to which they are held as a whole: 17 MB in float32, where chunks save
nothing.
"""


class Predictions(Protocol):
    """Candidates, probabilities and loss of one batch."""

    @property
    def labels(self) -> Tensor:
        """``[N]`` int64, the true tokens."""
        ...

    def candidates(self, count: int, *, weighted: bool = False) -> Tensor:
        """The true token and the ``count - 1`` most probable others, ``[N, K]`` (see
        :meth:`HeadPass.candidates`).
        """
        ...

    def log_p(self, ids: Tensor) -> Tensor:
        """Log probabilities of ``ids`` ``[N, K]``, float32 or wider; no gradient flows."""
        ...

    def token_losses(self, targets: SoftTargets) -> Tensor:
        """``-sum_k mass[n, k] log p(ids[n, k])``, ``[N]`` in float32 or wider; gradients flow to
        learner and mass.
        """
        ...

    def loss(self, targets: SoftTargets) -> Tensor:
        """Their mean (eq. 37); a scalar."""
        ...

    def logits(self) -> Tensor:
        """``[N, V]`` in the learner's dtype, with the graph to the learner: for what looks at every
        token.
        """
        ...


@dataclass(frozen=True)
class WholeLogits:
    """The plain path: any head, and derivatives of any order and mode.

    Args:
        scores: ``[N, V]`` logits, with the graph to the learner.
        labels: ``[N]`` int64, the true tokens.
    """

    scores: Tensor
    labels: Tensor

    def candidates(self, count: int, *, weighted: bool = False) -> Tensor:
        """See :func:`vpretrain.language.learner.targets.candidates`; nothing depends on
        ``weighted``.
        """
        check_count(count, self.scores.shape[1])
        with section("candidates"):
            return candidates(self.scores, self.labels, count)

    def log_p(self, ids: Tensor) -> Tensor:
        """By log-softmax over the vocabulary."""
        return candidate_log_probabilities(self.scores.detach(), ids)

    def token_losses(self, targets: SoftTargets) -> Tensor:
        """By log-softmax over the vocabulary."""
        return soft_target_losses(self.scores, targets)

    def loss(self, targets: SoftTargets) -> Tensor:
        """The mean; a batch without a predicted token is a
        :class:`~vpretrain.system.errors.UserError`.
        """
        if len(self.labels) == 0:
            raise nothing_to_predict()
        with section("loss"):
            return self.token_losses(targets).mean()

    def logits(self) -> Tensor:
        """As they were given."""
        return self.scores


def chunked_head(anatomy: Anatomy, count: int, temperature: float = 1.0) -> Head | None:
    """The head where it is passed over in chunks; None where logits as a whole are as cheap, or it
    is not plain linear.

    Args:
        anatomy: of the learner.
        count: N.
        temperature: > 0, what logits are divided by.
    """
    module = anatomy.head
    linear = type(module) is nn.Linear and (
        anatomy.scale == temperature == 1 or module.bias is None
    )
    if not linear or (anatomy.cap is not None and temperature != 1):
        return None
    head = Head.of(module, scale=anatomy.scale / temperature, cap=anatomy.cap)
    return head if count * len(head.weight) > WHOLE_LOGITS else None
