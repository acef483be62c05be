"""Documents sampled by optimizer-aware value, with a penalty on redundant ones (OPUS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.selection import Ranking, Redundancy, SelectionInRoundsArm
from vpretrain.method.roles import AlignmentName


@dataclass(frozen=True)
class Boltzmann(Ranking):
    """Samples documents one by one, without replacement, with probabilities proportional to
    ``exp(value / temperature)`` among the remaining ones.

    Args:
        temperature: > 0, in standard deviations of the value.
    """

    temperature: float

    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        """Sorts by value plus Gumbel noise, which has this distribution (Gumbel top-k)."""
        noise = -torch.empty_like(values).exponential_(generator=draw).log()
        return (values / self.temperature + noise).argsort(descending=True, stable=True)


@ARMS.declare(
    "opus",
    "trains on drawn documents by their value to the examples, less what repeats others (OPUS)",
)
class OpusArm(SelectionInRoundsArm):
    """OPUS (Wang et al., arXiv:2602.05400): a candidate's utility is the inner product of the
    optimizer's update for its gradient with the gradient of a proxy set. Candidates are sampled by
    a softmax of the utility; after each draw, the utility of the others is reduced by their
    similarity to it.

    Differences from the published form: the proxy is the feedback set, as ``value`` and
    ``data.feedback`` define it; P is AdamW's whole diagonal (eq. 35), over S; values are exact,
    while the paper sketches gradients, which costs less than the passes of a round here; documents
    are chosen and packed; sampling is done in rounds. Temperature and penalty are in standard
    deviations over the drawn documents: the published units scale with the learning rate, so that
    one number means a different choice at every step. Similarity is the plain inner product of
    gradients, not of their updates.
    """

    temperature: PositiveFloat = 1.0
    """Sampling temperature in standard deviations of value; near 0 the highest values are taken."""
    redundancy: NonNegativeFloat = 0.1
    """Penalty on documents whose gradient resembles those drawn before, with both value and
    similarity in standard deviations over the drawn documents; 0 saves the extra pass."""

    @property
    def valued_by(self) -> AlignmentName:
        return "optimizer_aware"

    @property
    def redundancy_penalty(self) -> Redundancy:
        return Redundancy(self.redundancy, self.rounds)

    def ranking(self) -> Boltzmann:
        return Boltzmann(self.temperature)
