"""Documents drawn by optimizer-aware value, with a penalty on what repeats others (OPUS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.selection import Ranking, SelectionArm
from vpretrain.method.roles import AlignmentName


@dataclass(frozen=True)
class Boltzmann(Ranking):
    """Drawn one after the other, without replacement, with probabilities proportional to
    ``exp(value / temperature)`` over those that are left.

    Args:
        temperature: > 0, in standard deviations of the value.
    """

    temperature: float

    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        """By the largest sums of value and Gumbel noise, which has this distribution."""
        noise = -torch.empty_like(values).exponential_(generator=draw).log()
        return (values / self.temperature + noise).argsort(descending=True, stable=True)


@ARMS.declare(
    "opus",
    "trains on drawn documents by their value to the examples, less what repeats others (OPUS)",
)
class OpusArm(SelectionArm):
    """OPUS (Wang et al., arXiv:2602.05400): a candidate's utility is the inner product of the
    update that the optimizer would make of its gradient with that of a proxy set; candidates are
    drawn by a softmax of the utility, and after each draw the others lose their similarity to it.

    What differs from the published form: the proxy is the feedback set, as ``value`` and
    ``data.feedback`` have it; P is AdamW's whole diagonal (eq. 35), over S; values are exact, where
    the paper sketches gradients, which costs less than the passes of a round here; documents are
    chosen and packed; the draw is in rounds.
    Temperature and penalty are in standard deviations over what was drawn: the published units
    follow the learning rate, so that one number means another choice at every step. Similarity is
    the plain inner product of gradients, not that of their updates.
    """

    temperature: PositiveFloat = 1.0
    """Temperature of the draw, in standard deviations of value: near 0 the highest are taken."""
    redundancy: NonNegativeFloat = 0.1
    """What a document loses that has a gradient like those drawn before it, in standard deviations
    of either over what was drawn; 0: nothing, and no pass for it."""

    @property
    def valued_by(self) -> AlignmentName:
        return "optimizer_aware"

    @property
    def penalty(self) -> float:
        return self.redundancy

    def ranking(self) -> Boltzmann:
        return Boltzmann(self.temperature)
