"""Documents chosen by their values alone (GREATS), and its control: chosen at random."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.selection import Ranking, SelectionArm
from vpretrain.method.roles import AlignmentName


class Highest(Ranking):
    """The highest values first; of equals the one that was drawn first."""

    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        return values.argsort(descending=True, stable=True)


class AtRandom(Ranking):
    """Documents in random order, whatever their values."""

    uses_values = False

    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        return torch.randperm(len(values), generator=draw)


@ARMS.declare(
    "greats_topk",
    "trains only on those of the drawn documents whose gradients agree best with that of the "
    "feedback (GREATS)",
)
class GreatsArm(SelectionArm):
    """GREATS (Wang et al., NeurIPS 2024): of the examples that were drawn, a step trains on those
    that lower the validation loss most, by a Taylor expansion: their gradient's inner product with
    that of the validation loss, less, in the greedy form, its inner products with the gradients of
    those that are chosen already (the Hessian taken for the identity).

    What differs from the published form: documents are chosen and packed, not rows of a batch;
    inner products are over S, and the validation gradient is that of the feedback set as ``value``
    and ``data.feedback`` have it (a running mean, renewed at meta steps). The correction is in
    standard deviations, and in rounds; as published it is the learning rate over the value, which
    at rates of AdamW changes no choice.
    """

    alignment: Literal["dot", "optimizer_aware"] = "dot"
    """What a document is valued by, whatever ``value.alignment`` is: the inner product with g_down
    over S, or with P g_down."""
    interaction: NonNegativeFloat = 0.0
    """What a document loses that has a gradient like those chosen before it, in standard deviations
    of either over what was drawn; 0: nothing, and no pass for it."""

    @property
    def valued_by(self) -> AlignmentName:
        return self.alignment

    @property
    def penalty(self) -> float:
        return self.interaction

    def ranking(self) -> Highest:
        return Highest()


@ARMS.declare("random_selection", "control: as many documents, chosen at random")
class RandomSelectionArm(SelectionArm):
    uses_feedback = False

    def ranking(self) -> AtRandom:
        return AtRandom()
