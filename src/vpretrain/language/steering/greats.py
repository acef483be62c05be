"""Documents chosen by their values alone (GREATS), and its control: chosen at random."""

from __future__ import annotations

import torch
from torch import Tensor

from vpretrain.language.steering.arms import ARMS, Site
from vpretrain.language.steering.baselines import OneHot
from vpretrain.language.steering.selection import Choice, SelectionArm, ValuedSelectionArm


class Highest(Choice):
    """The highest values first; of equals the one that was drawn first."""

    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        return values.argsort(descending=True, stable=True)


class AtRandom(Choice):
    """Whatever they are worth."""

    uses_values = False

    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        return torch.randperm(len(values), generator=draw)


@ARMS.declare(
    "greats_topk",
    "the documents whose gradients have the largest inner products with that of the feedback "
    "(GREATS)",
)
class GreatsArm(ValuedSelectionArm):
    """GREATS (Wang et al., NeurIPS 2024) in its first-order form: of the examples that were drawn,
    a step trains on those whose gradient has the largest inner product with the gradient of the
    validation loss.

    What differs from the published form: documents are chosen and packed, not rows of a batch; the
    inner product is over S; the validation gradient is that of the feedback set as ``value`` and
    ``data.feedback`` have it (a running mean, renewed at meta steps), not of a few rows at each
    step.
    """

    def choice(self) -> Highest:
        return Highest()


@ARMS.declare("random_selection", "control: as many documents, chosen at random")
class RandomSelectionArm(SelectionArm):
    uses_feedback = False

    def choice(self) -> AtRandom:
        return AtRandom()

    def build(self, site: Site) -> OneHot:
        return OneHot()
