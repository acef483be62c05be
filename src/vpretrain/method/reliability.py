"""Reliability of values, measured by the agreement of two halves of the feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vpretrain.method.moments import MEMORY, Moments
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

    Agreement is Pearson's r between the values under two halves of the feedback, over the recent
    meta steps. Their mean has the reliability ``2 r / (1 + r)`` (Spearman-Brown), by which values
    are shrunk, so that noise cannot steer as hard as signal.

    The r of a small batch is noise, and its mean over many such batches is too low, because it
    leaves out what sets one batch apart from another: hence one r of all values together, those of
    each meta step over their root mean square. With a single document in a batch it is still low.

    Args:
        shrink: if False, values are not shrunk (reliability 1); agreement is still reported.
        memory: factor by which a meta step counts less after each further one, in [0, 1).
        unit: unit of the value for designers that ascend it. Rules (:mod:`vpretrain.method.rules`)
            always take values in standard deviations.
    """

    shrink: bool
    memory: float = MEMORY
    unit: ValueUnit = "standardised"
    _halves: Moments = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._halves = Moments(self.memory)

    def update(self, values: Sequence[Tensor]) -> None:
        """Updates the agreement from the values under each feedback batch.

        Args:
            values: one ``[N, K]`` per feedback batch, for the same choices. A single batch has no
                agreement and is ignored.
        """
        if len(values) < 2:
            return
        parts = (values[0::2], values[1::2])
        halves = torch.stack([torch.stack(tuple(part)).mean(dim=0) for part in parts])
        # On a real checkpoint the scale falls two- to fivefold from one meta step to the next.
        scale = distributed.mean(halves.square()).sqrt()
        self._halves.update(*torch.where(scale == 0, 0, halves / scale))

    @property
    def agreement(self) -> float | None:
        """The running r; None before the first update."""
        return None if self._halves.count is None else self._halves.correlation

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
        if (agreement := self.agreement) is None:
            return {}
        return {"agreement": agreement, "reliability": self.factor}

    def state_dict(self) -> State:
        return self._halves.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._halves.load_state_dict(state)


def correlation(a: Tensor, b: Tensor) -> float:
    """Returns Pearson's r over all entries on all processes; 0 if either tensor is constant."""
    moments = Moments()
    moments.update(a, b)
    return moments.correlation
