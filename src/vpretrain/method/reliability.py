"""Reliability of values, measured by the agreement of two halves of the feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vpretrain.method.roles import State
from vpretrain.method.rules import standardised
from vpretrain.system import distributed

ValueUnit = Literal["standardised", "raw"]
"""Unit of the values: standard deviations over the batch (ours: the scales of loss and direction
cancel), or raw (eq. 9, the paper's).
"""


@dataclass
class Reliability:
    """Running agreement of the feedback batches on values, and the shrinkage that follows from it.

    Agreement is Pearson's r between the values under two halves of the feedback. Their mean has the
    reliability ``2 r / (1 + r)`` (Spearman-Brown), by which values are shrunk, so that noise cannot
    steer as hard as signal.

    Args:
        shrink: if False, values are not shrunk (reliability 1); agreement is still reported.
        memory: weight of the past in the running mean of r, in [0, 1).
        agreement: the running mean of r; None before the first update.
        unit: unit of the value for designers that ascend it. Rules (:mod:`vpretrain.method.rules`)
            always take values in standard deviations.
    """

    shrink: bool
    memory: float = 0.7
    agreement: float | None = None
    unit: ValueUnit = "standardised"

    def update(self, values: Sequence[Tensor]) -> None:
        """Updates the agreement from the values under each feedback batch.

        Args:
            values: one ``[N, K]`` per feedback batch, for the same choices. A single batch has no
                agreement and is ignored.
        """
        if len(values) < 2:
            return
        halves = [torch.stack(tuple(part)).mean(dim=0) for part in (values[0::2], values[1::2])]
        r = correlation(*halves)
        self.agreement = (
            r if self.agreement is None else self.memory * self.agreement + (1 - self.memory) * r
        )

    @property
    def factor(self) -> float:
        """The reliability in [0, 1] that values are multiplied by."""
        if not self.shrink:
            return 1.0
        r = max(0.0, self.agreement or 0.0)
        return 2 * r / (1 + r)

    def shrunk(self, values: Tensor) -> Tensor:
        """Returns values in standard deviations over the batch, multiplied by :attr:`factor`."""
        return self.factor * standardised(values)

    def metrics(self) -> dict[str, float]:
        """Returns ``agreement`` (running) and ``reliability``; empty before the first update."""
        if self.agreement is None:
            return {}
        return {"agreement": self.agreement, "reliability": self.factor}

    def state_dict(self) -> State:
        return {"agreement": self.agreement}

    def load_state_dict(self, state: State) -> None:
        self.agreement = state["agreement"]


def correlation(a: Tensor, b: Tensor) -> float:
    """Returns Pearson's r over all entries on all processes; 0 if either tensor is constant."""
    a, b = (each.flatten().double() - distributed.mean(each.double()) for each in (a, b))
    product, *squares = distributed.total(torch.stack([a @ b, a @ a, b @ b]))
    scale = squares[0].sqrt() * squares[1].sqrt()
    return float(product / scale) if scale > 0 else 0.0
