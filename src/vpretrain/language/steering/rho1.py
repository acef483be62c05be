"""Tokens selected by their excess loss over a reference model (Rho-1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from vpretrain.language.learner.targets import SoftTargets
from vpretrain.language.steering.arms import ARMS, Site
from vpretrain.language.steering.reference import ExcessLoss, ReferenceArm
from vpretrain.language.steering.rules import Candidates, TokenRule
from vpretrain.system import distributed


@dataclass(frozen=True)
class TopTokens(TokenRule):
    """One-hot targets on the tokens with the highest values; all others have weight 0.

    Args:
        keep: fraction of the tokens of a batch, over all processes, that are kept, in (0, 1].
    """

    keep: float

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        """Weights with mean 1: the loss is the mean over the tokens kept."""
        everywhere = distributed.all_gather_object(values[:, 0].tolist())
        ranked = sorted((each for part in everywhere for each in part), reverse=True)
        least = ranked[max(1, round(self.keep * len(ranked))) - 1]
        kept = (values >= least).to(probe.mass.dtype)
        return SoftTargets(probe.ids, kept / distributed.mean(kept))


@ARMS.declare(
    "rho1",
    "trains only on the tokens that a model fine-tuned on the feedback rows finds likelier, no "
    "feedback gradient (Rho-1)",
)
class Rho1Arm(ReferenceArm):
    """Rho-1 (Lin et al., arXiv:2404.07965): selective language modeling, the loss of the tokens
    with the largest excess loss over a reference model that was trained on good text.

    Differences from the published form: the good text is the feedback set, and the reference is a
    copy of the learner, fine-tuned on it before the first step. Tokens are ranked within a batch of
    the stream, over all processes.
    """

    uses_feedback = False

    keep: Annotated[float, Field(gt=0, le=1)] = 0.6
    """The fraction of tokens that are trained on."""

    def build(self, site: Site) -> ExcessLoss:
        return ExcessLoss(self.reference_for(site), TopTokens(self.keep))
