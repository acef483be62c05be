"""How far values can be trusted: what two halves of the feedback agree on, and nothing else."""

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
"""Standard deviations over the batch (ours: the scales of loss and direction drop out), or the
value's own (eq. 9, the paper's)."""


@dataclass
class Reliability:
    """How far the feedback batches agree on values, remembered over meta steps.

    Agreement is Pearson's r between the values under two halves of the feedback; their mean has the
    reliability ``2 r / (1 + r)`` (Spearman and Brown), by which values shrink. Noise then cannot
    steer as signal does.

    Args:
        shrink: if False values are taken as they are (reliability 1); agreement is still reported.
        memory: weight of the past in the running mean of r, in [0, 1).
        unit: what designers that ascend the value take it in; where a rule follows from values it
            reads them in standard deviations, whatever this says.
    """

    shrink: bool
    memory: float = 0.7
    agreement: float | None = None
    unit: ValueUnit = "standardised"

    def update(self, values: Sequence[Tensor]) -> None:
        """Takes the values ``[N, K]`` of the same choices under each feedback batch (one batch
        alone says nothing).
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
        """In [0, 1]: what values are multiplied by."""
        if not self.shrink:
            return 1.0
        r = max(0.0, self.agreement or 0.0)
        return 2 * r / (1 + r)

    def shrunk(self, values: Tensor) -> Tensor:
        """Values in standard deviations over the batch, shrunk by :attr:`factor`."""
        return self.factor * standardised(values)

    def metrics(self) -> dict[str, float]:
        """``agreement`` (running) and ``reliability`` once there were two feedback batches."""
        if self.agreement is None:
            return {}
        return {"agreement": self.agreement, "reliability": self.factor}

    def state_dict(self) -> State:
        return {"agreement": self.agreement}

    def load_state_dict(self, state: State) -> None:
        self.agreement = state["agreement"]


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r over all entries, on all processes; 0 where one of them does not vary."""
    a, b = (each.flatten().double() - distributed.mean(each.double()) for each in (a, b))
    product, *squares = distributed.total(torch.stack([a @ b, a @ a, b @ b]))
    scale = squares[0].sqrt() * squares[1].sqrt()
    return float(product / scale) if scale > 0 else 0.0
