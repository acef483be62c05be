"""How far values can be trusted: what two halves of the feedback agree on, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Reliability:
    """How far the feedback batches agree on values, remembered over meta steps.

    Agreement is Pearson's r between the values under two halves of the feedback; their mean has the reliability
    ``2 r / (1 + r)`` (Spearman and Brown), by which values shrink. Noise then cannot open the gate as signal does.

    Args:
        shrink: if False values are taken as they are (reliability 1); agreement is still reported.
        memory: weight of the past in the running mean of r, in [0, 1).
    """

    shrink: bool
    memory: float = 0.7
    agreement: float | None = None

    def hear(self, values: Sequence[Tensor], group: Tensor) -> None:
        """Takes the values ``[N, K]`` of the same choices under each feedback batch (one batch alone says nothing).

        Args:
            values: one tensor a feedback batch.
            group: ``[N]`` int64, the group that each place belongs to (a token's document).
        """
        if len(values) < 2:
            return
        halves = [torch.stack(tuple(part)).mean(dim=0) for part in (values[0::2], values[1::2])]
        r = correlation(*halves)
        self.agreement = r if self.agreement is None else self.memory * self.agreement + (1 - self.memory) * r

    @property
    def factor(self) -> float:
        """In [0, 1]: the reliability."""
        if not self.shrink:
            return 1.0
        r = max(0.0, self.agreement or 0.0)
        return 2 * r / (1 + r)

    def shrunk(self, values: Tensor, group: Tensor) -> Tensor:
        """The values ``[N, K]`` times their reliability."""
        return self.factor * values

    def metrics(self) -> dict[str, float]:
        """``agreement`` (running) and ``reliability`` once two feedback batches were heard."""
        return {} if self.agreement is None else {"agreement": self.agreement, "reliability": self.factor}

    def state_dict(self) -> dict[str, Any]:
        """The running agreement."""
        return {"agreement": self.agreement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the running agreement."""
        self.agreement = state["agreement"]


@dataclass
class Nested:
    """Two reliabilities: of what the tokens of a document have in common, and of what sets them apart.

    Whether a document is sound is heard in all of its tokens, so that its mean is trusted further than a single token's
    distance from it (a random-effects model, each part shrunk by its own agreement).

    Args:
        shrink: as :class:`Reliability`.
    """

    shrink: bool
    between: Reliability = field(init=False)
    within: Reliability = field(init=False)

    def __post_init__(self) -> None:
        self.between, self.within = Reliability(self.shrink), Reliability(self.shrink)

    def hear(self, values: Sequence[Tensor], group: Tensor) -> None:
        """As :meth:`Reliability.hear`."""
        means = [group_means(each, group) for each in values]
        apart = [each - mean[group] for each, mean in zip(values, means, strict=True)]
        self.between.hear(means, group)
        self.within.hear(apart, group)

    def shrunk(self, values: Tensor, group: Tensor) -> Tensor:
        """Both parts times their own reliability, added up again."""
        common = group_means(values, group)[group]
        return self.between.factor * common + self.within.factor * (values - common)

    def metrics(self) -> dict[str, float]:
        """``agreement`` and ``reliability`` of documents, and both of tokens within them."""
        within = {f"{name}_within": value for name, value in self.within.metrics().items()}
        return self.between.metrics() | within

    def state_dict(self) -> dict[str, Any]:
        """Both."""
        return {"between": self.between.state_dict(), "within": self.within.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores both."""
        self.between.load_state_dict(state["between"])
        self.within.load_state_dict(state["within"])


def group_means(values: Tensor, group: Tensor) -> Tensor:
    """``[M, K]``: the mean of ``values`` ``[N, K]`` over the tokens of each document; 0 for one without tokens."""
    groups = int(group.max()) + 1
    sums = values.new_zeros(groups, *values.shape[1:]).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=groups).clamp_min(1)[:, None]


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r over all entries; 0 where one of them does not vary."""
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    scale = a.norm() * b.norm()
    return float((a @ b) / scale) if scale > 0 else 0.0
