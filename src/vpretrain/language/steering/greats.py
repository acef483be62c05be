"""Selection of the documents with the highest values (GREATS), and a random control."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from vpretrain.config.arms import Role
from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.selection import (
    Ranking,
    Redundancy,
    SelectionArm,
    SelectionInRoundsArm,
)
from vpretrain.method.roles import AlignmentName


class Highest(Ranking):
    """Highest values first; ties in the order of drawing."""

    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        return values.argsort(descending=True, stable=True)


class AtRandom(Ranking):
    """Random order, independent of the values."""

    uses_values = False

    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        return torch.randperm(len(values), generator=draw)


@ARMS.declare(
    "greats_topk",
    "trains only on those of the drawn documents whose gradients agree best with that of the "
    "feedback (GREATS)",
)
class GreatsArm(SelectionInRoundsArm):
    """GREATS (Wang et al., NeurIPS 2024): a step trains on those of the drawn examples that lower
    the validation loss most, by a Taylor expansion: the inner product of their gradient with the
    validation gradient minus, in the greedy form, its inner products with the gradients of examples
    already chosen (approximating the Hessian by the identity).

    Differences from the published form: documents are chosen and packed rather than rows of a
    batch; inner products are over S, and the validation gradient is that of the feedback set, as
    ``value`` and ``data.feedback`` define it (a running mean, updated at meta steps). The
    correction is in standard deviations and made in rounds; the published factor is the learning
    rate, which at AdamW's rates changes no choice.
    """

    alignment: Literal["dot", "optimizer_aware"] = "dot"
    """Value of a document, in place of ``value.alignment``: the inner product of its gradient with
    g_down over S, or with P g_down."""
    interaction: NonNegativeFloat = 0.0
    """Penalty on documents whose gradient resembles those chosen before, with both value and
    similarity in standard deviations over the drawn documents; 0 saves the extra pass."""

    @property
    def valued_by(self) -> AlignmentName:
        return self.alignment

    @property
    def redundancy_penalty(self) -> Redundancy:
        return Redundancy(self.interaction, self.rounds)

    def ranking(self) -> Highest:
        return Highest()


@ARMS.declare("random_selection", "control: as many documents, chosen at random")
class RandomSelectionArm(SelectionArm):
    role: ClassVar[Role] = "control"
    uses_feedback = False

    def ranking(self) -> AtRandom:
        return AtRandom()
