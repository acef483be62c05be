"""Rules: from what the candidates are worth to what the learner is asked to predict. No rule hears feedback itself.

All of them are linear control surfaces: the value of the task is the sum of mass times token value. Shapes: N predicted
tokens of the batch, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from vpretrain.language.learner import Context
from vpretrain.language.targets import SoftTargets, candidate_log_probabilities, candidates, mix
from vpretrain.rules import anchored, standardised, tilted


class Candidates:
    """The tokens that a target may put mass on, and how probable the learner finds them.

    Args:
        context: the learner's pass over the batch.
        count: K, the true token and the learner's K - 1 most probable others (eq. 14).
    """

    def __init__(self, context: Context, count: int) -> None:
        self.context = context
        self.ids = candidates(context.logits, context.labels, count)

    @cached_property
    def log_p(self) -> Tensor:
        """``[N, K]`` float32 or wider, detached."""
        return candidate_log_probabilities(self.context.logits.detach(), self.ids)


class Rule(Protocol):
    """A way from values to a task."""

    def __call__(self, among: Candidates, values: Tensor) -> SoftTargets:
        """Targets for ``values`` ``[N, K]``, in standard deviations over the batch and shrunk by their reliability.

        Values of zero give one-hot targets of weight 1.
        """
        ...


@dataclass(frozen=True)
class Anchored:
    """Soft targets by the KL-anchored rule (see :func:`vpretrain.language.targets.anchored`).

    Args:
        temperature: tau > 0, in standard deviations of s.
        clip: bound on the tilt ``|s / tau|``.
        gate_max: ``alpha_max`` in [0, 1].
    """

    temperature: float = 1.0
    clip: float = 2.0
    gate_max: float = 0.5

    def __call__(self, among: Candidates, values: Tensor) -> SoftTargets:
        """Mass moves to candidates that are worth more than the true token and that the learner finds possible."""
        proposal, gate = anchored(
            values, among.log_p, temperature=self.temperature, clip=self.clip, gate_max=self.gate_max
        )
        return mix(among.ids, proposal, gate)


@dataclass(frozen=True)
class TokenWeights:
    """One-hot targets whose tokens count by their value: ``w = 1 + c clip(s - mean, +-3)``, >= 0, mean 1.

    Args:
        tilt: ``c`` >= 0, weight per standard deviation of the value.
    """

    tilt: float = 0.4

    def __call__(self, among: Candidates, values: Tensor) -> SoftTargets:
        """The true token's mass is its weight, the others have none."""
        worth = values[:, 0] - values[:, 0].mean()
        return SoftTargets(among.ids, _on_truth(values, tilted(worth, self.tilt)))


@dataclass(frozen=True)
class GroupWeights:
    """One-hot targets whose tokens count by the group they stand in: ``w = 1 + c clip(t / 3, +-1)``, >= 0, mean 1.

    t is the t statistic of the group's mean token value against the batch's.

    Args:
        tilt: ``c`` >= 0, the most by which a group gains or loses.
        by: ``source``: the mixture of sources is all that feedback may change; ``document``: whole documents count more
            or less.
    """

    tilt: float = 0.4
    by: Literal["source", "document"] = "source"

    def __call__(self, among: Candidates, values: Tensor) -> SoftTargets:
        """The true token's mass is the weight of its group."""
        worth = values[:, 0] - values[:, 0].mean()
        group, groups = self._groups(among.context)
        count = torch.bincount(group, minlength=groups).clamp_min(1)
        t = torch.zeros(groups, dtype=worth.dtype, device=worth.device).index_add(0, group, worth) / count.sqrt()
        return SoftTargets(among.ids, _on_truth(values, tilted((t / 3).clamp(-1, 1)[group], self.tilt)))

    def _groups(self, context: Context) -> tuple[Tensor, int]:
        """The group of every predicted token, ``[N]`` int64, and how many groups there are."""
        document, documents = context.document, context.batch.documents
        if self.by == "document":
            return document, len(documents)
        names = sorted({each.source for each in documents})
        source = torch.tensor([names.index(each.source) for each in documents], device=document.device)
        return source[document], len(names)


@dataclass(frozen=True)
class WeightedTargets:
    """Both surfaces: soft targets by one rule, and tokens that count by what their soft target is worth.

    Args:
        targets: the rule that shapes the targets.
        tilt: ``c`` of the token weights.
    """

    targets: Anchored
    tilt: float = 0.4

    def __call__(self, among: Candidates, values: Tensor) -> SoftTargets:
        """Mass of the soft targets times the weight of their token."""
        soft = self.targets(among, values)
        worth = (soft.mass * values).sum(dim=1)
        # In units of its own spread, as token weights are, times the shrinkage that the values came with.
        shrinkage = values.std(correction=0).clamp(max=1)
        worth = shrinkage * standardised(worth - worth.mean())
        return SoftTargets(soft.ids, soft.mass * tilted(worth, self.tilt)[:, None])


def _on_truth(values: Tensor, weights: Tensor) -> Tensor:
    mass = torch.zeros_like(values)
    mass[:, 0] = weights
    return mass
