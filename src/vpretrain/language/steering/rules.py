"""Rules that turn the values of candidates into the learner's targets (see
:class:`vpretrain.method.exact.Rule`).

All are linear control surfaces: along a fixed direction the value of the task is the sum of mass
times ``dV/d mass``. The *value of a token*, ``s_t(v)``, is ``dV/d mass_t(v)`` where all tokens have
the same share in the loss; it is large if training on the token lowers the feedback loss. Values of
zero give one-hot targets of weight 1. Shapes: N predicted tokens of the batch, K candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
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
    """One-hot targets over the candidates, the tokens that targets may put mass on.

    Args:
        context: the learner's forward pass on the batch.
    """

    context: Context

    @classmethod
    def among(cls, context: Context, count: int, *, weighted: bool = False) -> Candidates:
        """The true token and the learner's ``count - 1`` most probable others (eq. 14).
        ``weighted`` says whether the rule weights tokens."""
        ids = context.predictions.candidates(count, weighted=weighted)
        dtype = torch.promote_types(context.hidden.dtype, torch.float32)
        return cls(ids, one_hot(context.labels, ids, dtype).mass, context)

    @cached_property
    def log_p(self) -> Tensor:
        """The learner's log probabilities of the candidates, ``[N, K]``, float32 or wider,
        detached."""
        return self.context.predictions.log_p(self.ids)

    def values(self, gradient: Tensor) -> Tensor:
        """The values of tokens from ``dV/d mass``, ``[N, K]``, without their shares in the loss.

        Under ``loss_mean: example`` a share is one over the number of predicted tokens in the
        document. Left in, it would make tokens of short documents, not valuable ones, stand out."""
        if self.context.batch.loss_mean == "token":
            return gradient
        document = self.context.document
        share = 1 / document.bincount()[document].to(gradient.dtype)
        return gradient * (distributed.mean(share) / share)[:, None]


class TokenRule(Rule[Context, Candidates, SoftTargets]):
    """Base class of the language rules; by default the only candidate is the true token."""

    def baseline_task(self, context: Context) -> SoftTargets:
        """One-hot targets, without a pass over the vocabulary."""
        return one_hot(context.labels)

    def probe(self, context: Context) -> Candidates:
        return Candidates.among(context, 1, weighted=True)

    @property
    def bounds(self) -> Bounds:
        """The bounds of the weights' spread, which is 0 if all tokens weigh the same."""
        return {"weight_spread": (0.0, math.inf)}

    def values(self, probe: Candidates, gradient: Tensor) -> Tensor:
        return probe.values(gradient)

    def metrics(self, probe: Candidates, task: SoftTargets, gradient: Tensor) -> dict[str, float]:
        return target_metrics(task.mass)


@dataclass(frozen=True)
class Anchored(TokenRule):
    """Soft targets by the KL-anchored rule (see :func:`vpretrain.method.rules.anchored`).

    Args:
        count: K, number of candidates.
        temperature: tau > 0, in standard deviations of s.
        clip: bound on the tilt ``|s / tau|``.
        gate_max: ``alpha_max``, in [0, 1].
    """

    count: int
    temperature: float = 1.0
    clip: float = 2.0
    gate_max: float = 0.5

    @property
    def bounds(self) -> Bounds:
        """The bounds of the gate (closed, fully open) and of the entropy (uniform targets)."""
        return {"gate": (0.0, self.gate_max), "entropy": (-math.inf, math.log(self.count))}

    def probe(self, context: Context) -> Candidates:
        return Candidates.among(context, self.count)

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        """Targets with mass moved to candidates of higher value than the true token, weighted by
        the learner's probabilities of them."""
        bounds = {"clip": self.clip, "gate_max": self.gate_max}
        proposal, gate = anchored(values, probe.log_p, temperature=self.temperature, **bounds)
        return mix(probe.ids, proposal, gate)

    def metrics(self, probe: Candidates, task: SoftTargets, gradient: Tensor) -> dict[str, float]:
        return {"gain_bound": gain_bound(gradient, self.gate_max), **target_metrics(task.mass)}


class AnchoredArm(CandidatesArm):
    """The keys of arms that follow the anchored rule."""

    gate_max: Annotated[float, Field(ge=0, le=1)] = 0.5
    """alpha_max, the maximum mass that may be moved away from the true token (eq. 15)."""
    temperature: PositiveFloat = 1.0
    """tau of the anchored rule, in standard deviations of the token value."""
    clip: PositiveFloat = 2.0
    """Bound on the tilt (value over temperature) of the anchored rule."""

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
    """One-hot targets with tokens weighted by their value: ``w = 1 + c clip(s, +-3)``, >= 0.

    Args:
        tilt: ``c`` >= 0, change of weight per standard deviation of the value.
    """

    tilt: float = 0.4
    weighted = True

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        return SoftTargets(probe.ids, tilted(values, self.tilt))


@ARMS.declare(
    "token_weights", "each token weighted by its value to the examples (not from the paper)"
)
class TokenWeightsArm(TiltArm):
    cost = Cost(exact=True, weighted=True)

    def build(self, site: Site) -> ExactDesigner:
        return ExactDesigner(TokenWeights(self.tilt), site.reliability)


@dataclass(frozen=True)
class GroupWeights(TokenRule):
    """One-hot targets with tokens weighted by their group: ``w = 1 + c clip(t / 3, +-1)``, >= 0.

    t is the t statistic of the group's mean token value against that of the recent batches.

    Args:
        tilt: ``c`` >= 0, maximum change of a group's weight.
        by: the groups: ``source`` only changes the mixture of sources, ``document`` weights whole
            documents.
    """

    tilt: float = 0.4
    by: Literal["source", "document"] = "source"
    weighted = True

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        group, groups = self._groups(probe.context)
        each = torch.stack([values[:, 0], torch.ones_like(values[:, 0])])
        sums = values.new_zeros(2, groups).index_add(1, group, each)
        if self.by != "document":  # no two processes share a document
            sums = distributed.total(sums)
        total, count = sums
        t = total / count.clamp_min(1).sqrt()
        return SoftTargets(probe.ids, tilted((t / 3).clamp(-1, 1)[group], self.tilt)[:, None])

    def metrics(self, probe: Candidates, task: SoftTargets, gradient: Tensor) -> dict[str, float]:
        """Without ``weight_spread`` where there is one group: at a meta step it has nothing to be
        compared with, and no spread is no sign of a collapse."""
        figures = super().metrics(probe, task, gradient)
        groups = self._groups(probe.context)[1]
        if (groups if self.by == "source" else distributed.summed(groups)) < 2:
            del figures["weight_spread"]
        return figures

    def _groups(self, context: Context) -> tuple[Tensor, int]:
        """The group of every predicted token, ``[N]`` int64, and the number of groups."""
        if self.by == "document":
            return context.document, len(context.batch.documents)
        source, names = sources_of(context)
        return source, len(names)


def sources_of(context: Context) -> tuple[Tensor, list[str]]:
    """The source of every predicted token, ``[N]`` int64, as an index into the returned names: the
    sorted sources in the batches of all processes. A collective call."""
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
    tilt: NonNegativeFloat = 1.5
    """c: maximum change of a document's weight, reached at 3 standard errors between its mean value
    and that of the recent batches."""

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
    """Both surfaces: soft targets from one rule, with tokens weighted by their soft target's value.

    Args:
        targets: the rule of the soft targets.
        tilt: ``c`` of the token weights.
    """

    targets: Anchored
    tilt: float = 0.4
    weighted = True

    @property
    def bounds(self) -> Bounds:
        """The bounds of the weights' spread and of the gate, which has no lower bound: with a
        closed gate, the weights still steer."""
        return {**super().bounds, "gate": (-math.inf, self.targets.gate_max)}

    def probe(self, context: Context) -> Candidates:
        return Candidates.among(context, self.targets.count, weighted=True)

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        """The soft targets, with their mass multiplied by the weight of their token."""
        soft = self.targets.task(probe, values)
        value = (soft.mass * values).sum(dim=1)
        # In units of its own spread, like token weights, times the shrinkage of the values.
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
    """The maximum gain of soft targets over these candidates, with ``gate_max`` on the most
    valuable one; it includes noise of the feedback. A designer's *regret* is this minus its gain.
    """
    return float(gate_max * distributed.total((values.max(dim=1).values - values[:, 0]).sum()))


def target_metrics(mass: Tensor) -> dict[str, float]:
    """Metrics of a batch's targets: ``gate``, the mean mass off the true token; ``entropy``, the
    mean entropy in nats; ``weight_spread``, the root mean square of the token weights' deviations
    from 1."""
    weight = mass.sum(dim=1)
    counted = weight > 0
    q = mass[counted] / weight[counted, None]
    return {
        "gate": float(distributed.mean(1 - q[:, 0])),
        "entropy": float(distributed.mean(torch.special.entr(q).sum(dim=1))),
        "weight_spread": float(distributed.mean((weight - 1).square()).sqrt()),
    }
