"""Rules: from the values of the candidates to what the learner is asked to predict (see
:class:`vpretrain.method.exact.Rule`).

All of them are linear control surfaces: the value of the task is the sum of mass times token value.
The *value of a token* is ``s_t(v) = dV/d mass_t(v)``: it is large if its probability rises as the
feedback loss falls. Values of zero give one-hot targets of weight 1. Shapes: N predicted tokens of
the batch, K candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.targets import SoftTargets, mix, one_hot
from vpretrain.language.steering.arms import ARMS, CandidatesArm, Cost, Site, TiltArm
from vpretrain.method.exact import ExactDesigner, Rule
from vpretrain.method.roles import Bounds
from vpretrain.method.rules import anchored, standardised, tilted
from vpretrain.system import distributed


@dataclass(frozen=True)
class Candidates(SoftTargets):
    """One-hot targets over the tokens that a target may put mass on.

    Args:
        context: the learner's pass over the batch.
    """

    context: Context

    @classmethod
    def among(cls, context: Context, count: int, *, weighted: bool = False) -> Candidates:
        """The true token and the learner's ``count - 1`` most probable others (eq. 14);
        ``weighted``: whether the rule gives tokens weights."""
        ids = context.predictions.candidates(count, weighted=weighted)
        dtype = torch.promote_types(context.hidden.dtype, torch.float32)
        return cls(ids, one_hot(context.labels, count, ids, dtype).mass, context)

    @cached_property
    def log_p(self) -> Tensor:
        """``[N, K]`` float32 or wider, detached."""
        return self.context.predictions.log_p(self.ids)


class TokenRule(Rule[Context, Candidates, SoftTargets]):
    """What the rules of language share; by default they concern the true token alone."""

    def baseline_task(self, context: Context) -> SoftTargets:
        """One-hot targets, without a look at the vocabulary."""
        return one_hot(context.labels)

    def probe(self, context: Context) -> Candidates:
        return Candidates.among(context, 1, weighted=True)

    @property
    def bounds(self) -> Bounds:
        """The spread of the weights, which is 0 where nothing is told apart."""
        return {"weight_spread": (0.0, math.inf)}

    def values(self, probe: Candidates, gradient: Tensor) -> Tensor:
        return gradient

    def metrics(self, probe: Candidates, task: SoftTargets, gradient: Tensor) -> dict[str, float]:
        return target_metrics(task.mass)


@dataclass(frozen=True)
class Anchored(TokenRule):
    """Soft targets by the KL-anchored rule (see :func:`vpretrain.method.rules.anchored`).

    Args:
        count: K candidates.
        temperature: tau > 0, in standard deviations of s.
        clip: bound on the tilt ``|s / tau|``.
        gate_max: ``alpha_max`` in [0, 1].
    """

    count: int
    temperature: float = 1.0
    clip: float = 2.0
    gate_max: float = 0.5

    @property
    def bounds(self) -> Bounds:
        """The gate, shut or wide open, and the entropy of targets that are even over their
        candidates."""
        return {"gate": (0.0, self.gate_max), "entropy": (-math.inf, math.log(self.count))}

    def probe(self, context: Context) -> Candidates:
        return Candidates.among(context, self.count)

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        """Mass moves to candidates of more value than the true token that the learner finds
        possible."""
        bounds = {"clip": self.clip, "gate_max": self.gate_max}
        proposal, gate = anchored(values, probe.log_p, temperature=self.temperature, **bounds)
        return mix(probe.ids, proposal, gate)

    def metrics(self, probe: Candidates, task: SoftTargets, gradient: Tensor) -> dict[str, float]:
        return {"gain_bound": gain_bound(gradient, self.gate_max), **target_metrics(task.mass)}


class AnchoredArm(CandidatesArm):
    """The keys of arms that follow the anchored rule."""

    gate_max: Annotated[float, Field(ge=0, le=1)] = 0.5
    """alpha_max: the most mass that may leave the true token (eq. 15)."""
    temperature: PositiveFloat = 1.0
    """tau of the anchored rule, in standard deviations of the token value."""
    clip: PositiveFloat = 2.0
    """Bound on the tilt of the anchored rule."""

    @property
    def targets(self) -> Anchored:
        return Anchored(self.candidates, self.temperature, self.clip, self.gate_max)


@ARMS.declare(
    "closed_form",
    "part of each target goes to likely tokens of higher value, by a fixed rule (not from the "
    "paper)",
)
class ClosedFormArm(AnchoredArm):
    cost = Cost(candidates=True, exact=True)

    def build(self, site: Site) -> ExactDesigner:
        return ExactDesigner(self.targets, site.reliability)


@dataclass(frozen=True)
class TokenWeights(TokenRule):
    """One-hot targets whose tokens count by their value: ``w = 1 + c clip(s - mean, +-3)``, >= 0,
    mean 1.

    Args:
        tilt: ``c`` >= 0, weight per standard deviation of the value.
    """

    tilt: float = 0.4

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        centred = values[:, 0] - distributed.mean(values[:, 0])
        return SoftTargets(probe.ids, tilted(centred, self.tilt)[:, None])


@ARMS.declare(
    "token_weights", "each token weighted by its value to the examples (not from the paper)"
)
class TokenWeightsArm(TiltArm):
    cost = Cost(exact=True, weighted=True)

    def build(self, site: Site) -> ExactDesigner:
        return ExactDesigner(TokenWeights(self.tilt), site.reliability)


@dataclass(frozen=True)
class GroupWeights(TokenRule):
    """One-hot targets whose tokens count by the group they stand in:
    ``w = 1 + c clip(t / 3, +-1)``, >= 0, mean 1.

    t is the t statistic of the group's mean token value against the batch's.

    Args:
        tilt: ``c`` >= 0, the most by which a group gains or loses.
        by: ``source``: the mixture of sources is all that feedback may change; ``document``: whole
            documents count more or less.
    """

    tilt: float = 0.4
    by: Literal["source", "document"] = "source"

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        centred = values[:, 0] - distributed.mean(values[:, 0])
        group, groups = self._groups(probe.context)
        each = torch.stack([centred, torch.ones_like(centred)])
        sums = centred.new_zeros(2, groups).index_add(1, group, each)
        if self.by != "document":  # no two processes share a document
            sums = distributed.total(sums)
        total, count = sums
        t = total / count.clamp_min(1).sqrt()
        return SoftTargets(probe.ids, tilted((t / 3).clamp(-1, 1)[group], self.tilt)[:, None])

    def _groups(self, context: Context) -> tuple[Tensor, int]:
        """The group of every predicted token, ``[N]`` int64, and how many groups there are."""
        if self.by == "document":
            return context.document, len(context.batch.documents)
        source, names = sources_of(context)
        return source, len(names)


def sources_of(context: Context) -> tuple[Tensor, list[str]]:
    """The source of every predicted token, ``[N]`` int64, as a place among the names of those that
    the batches of all processes hold."""
    document, documents = context.document, context.batch.documents
    everywhere = distributed.all_gather_object({each.source for each in documents})
    names = sorted(set().union(*everywhere))
    source = [names.index(each.source) for each in documents]
    return torch.tensor(source, device=document.device)[document], names


@ARMS.declare(
    "document_weights",
    "each document weighted by the mean value of its tokens to the examples (not from the paper)",
)
class DocumentWeightsArm(TiltArm):
    cost = Cost(exact=True, weighted=True)

    def build(self, site: Site) -> ExactDesigner:
        return ExactDesigner(GroupWeights(self.tilt, by="document"), site.reliability)


@ARMS.declare(
    "source_weights",
    "each source weighted by the mean value of its tokens to the examples (not from the paper)",
)
class SourceWeightsArm(TiltArm):
    cost = Cost(exact=True, weighted=True)
    needs_sources = True

    def build(self, site: Site) -> ExactDesigner:
        return ExactDesigner(GroupWeights(self.tilt, by="source"), site.reliability)


@dataclass(frozen=True)
class WeightedTargets(TokenRule):
    """Both surfaces: soft targets by one rule, and tokens that count by their soft target's value.

    Args:
        targets: the rule that shapes the targets.
        tilt: ``c`` of the token weights.
    """

    targets: Anchored
    tilt: float = 0.4

    @property
    def bounds(self) -> Bounds:
        """The spread of the weights, and a gate that is wide open; a shut one may leave weights."""
        return {**super().bounds, "gate": (-math.inf, self.targets.gate_max)}

    def probe(self, context: Context) -> Candidates:
        return Candidates.among(context, self.targets.count, weighted=True)

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        """Mass of the soft targets times the weight of their token."""
        soft = self.targets.task(probe, values)
        value = (soft.mass * values).sum(dim=1)
        # In units of its own spread, as token weights are, times the shrinkage of the values.
        shrinkage = distributed.std(values).clamp(max=1)
        value = shrinkage * standardised(value - distributed.mean(value))
        return SoftTargets(soft.ids, soft.mass * tilted(value, self.tilt)[:, None])


@ARMS.declare(
    "weighted_targets",
    "the targets of `closed_form` and the weights of `token_weights` (not from the paper)",
)
class WeightedTargetsArm(AnchoredArm, TiltArm):
    cost = Cost(candidates=True, exact=True, weighted=True)

    def build(self, site: Site) -> ExactDesigner:
        return ExactDesigner(WeightedTargets(self.targets, self.tilt), site.reliability)


def gain_bound(values: Tensor, gate_max: float) -> float:
    """The most that soft targets on these candidates could gain: all of ``gate_max`` on the most
    valuable one, noise of the feedback included. A designer's *regret* is this less its gain."""
    return float(gate_max * distributed.total((values.max(dim=1).values - values[:, 0]).sum()))


def target_metrics(mass: Tensor) -> dict[str, float]:
    """How a batch's targets look: mean mass off the true token, mean entropy of the targets (nats),
    spread of the token weights."""
    weight = mass.sum(dim=1)
    counted = weight > 0
    q = mass[counted] / weight[counted, None]
    return {
        "gate": float(distributed.mean(1 - q[:, 0])),
        "entropy": float(distributed.mean(torch.special.entr(q).sum(dim=1))),
        "weight_spread": float(distributed.std(weight)),
    }
