"""Next-token predictions behind one interface: whole logits, or passes over the head (head.py).

Shapes: N positions in the loss, D hidden width, V vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from vpretrain.language.learner.head_chunks import Head
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
"""Number of logits (``N V``) up to which they are kept whole: at 17 MB in float32 chunks save
nothing."""


class Predictions(Protocol):
    """Candidates, probabilities and loss of the predicted tokens of one batch."""

    @property
    def labels(self) -> Tensor:
        """``[N]`` int64, the true tokens."""
        ...

    def candidates(self, count: int, *, weighted: bool = False) -> Tensor:
        """``[N, K]`` int64; see :meth:`HeadPass.candidates`."""
        ...

    def log_p(self, ids: Tensor) -> Tensor:
        """Log probabilities of ``ids`` ``[N, K]``, float32 or wider; no gradient flows."""
        ...

    def token_losses(self, targets: SoftTargets) -> Tensor:
        """``[N]`` in float32 or wider; gradients flow to learner and mass (see
        :func:`~vpretrain.language.learner.targets.soft_target_losses`)."""
        ...

    def loss(self, targets: SoftTargets) -> Tensor:
        """The mean of :meth:`token_losses` (eq. 37); a scalar."""
        ...

    def logits(self) -> Tensor:
        """``[N, V]`` in the learner's dtype, with the graph to the learner."""
        ...


@dataclass(frozen=True)
class WholeLogits:
    """The plain path, with all logits in memory: any head, derivatives of any order and mode.

    Args:
        scores: ``[N, V]`` logits, with the graph to the learner.
        labels: ``[N]`` int64, the true tokens.
    """

    scores: Tensor
    labels: Tensor

    def candidates(self, count: int, *, weighted: bool = False) -> Tensor:
        check_count(count, self.scores.shape[1])
        with section("candidates"):
            return candidates(self.scores, self.labels, count)

    def log_p(self, ids: Tensor) -> Tensor:
        return candidate_log_probabilities(self.scores.detach(), ids)

    def token_losses(self, targets: SoftTargets) -> Tensor:
        return soft_target_losses(self.scores, targets)

    def loss(self, targets: SoftTargets) -> Tensor:
        """The mean loss; ``UserError`` for a batch without a predicted token."""
        if len(self.labels) == 0:
            raise nothing_to_predict()
        with section("loss"):
            return self.token_losses(targets).mean()

    def logits(self) -> Tensor:
        return self.scores


def chunked_head(anatomy: Anatomy, count: int, temperature: float = 1.0) -> Head | None:
    """The head for passes in chunks, with logits divided by ``temperature`` > 0. None if whole
    logits of ``count`` positions are as cheap, or the head does not allow it."""
    module = anatomy.head
    unscaled = anatomy.scale == temperature == 1
    linear = type(module) is nn.Linear and (unscaled or module.bias is None)
    if not linear or (anatomy.cap is not None and temperature != 1):
        return None
    head = Head.of(module, scale=anatomy.scale / temperature, cap=anatomy.cap)
    return head if count * len(head.weight) > WHOLE_LOGITS else None
