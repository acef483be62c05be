"""The task designers of language, one class an arm; the training loop never asks which one it has.

Fixed ones hear no feedback: ``OneHot``, ``UniformSmoothing``, ``SelfDistillation``. Those steered by exact values of the
learner's own batch: ``ClosedForm``, ``TokenWeights``. Learned ones, which amortise the values in a network, are in
:mod:`vpretrain.language.learned`.

The *value of a token* is ``s_t(v) = dV/d mass_t(v)``: a token is worth much if its probability rises as the feedback loss
falls. V is linear in the mass, so s does not depend on the task it was taken at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vpretrain.contracts import Appraise
from vpretrain.language.learner import Context
from vpretrain.language.targets import (
    SoftTargets,
    anchored,
    candidate_log_probabilities,
    candidates,
    mix,
    one_hot,
    standardised,
)


class Fixed:
    """A designer that hears no feedback and keeps no state."""

    listens = False

    def plain(self, context: Context) -> SoftTargets:
        """One-hot targets."""
        return one_hot(context.labels)

    def learn(self, context: Context, appraise: Appraise) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class OneHot(Fixed):
    """Next-token prediction as it always was: the baseline."""

    def construct(self, context: Context, appraise: Appraise) -> SoftTargets:
        """One-hot targets."""
        return self.plain(context)


@dataclass
class UniformSmoothing(Fixed):
    """The same mass on every candidate, behind a constant gate (a control of the paper's Table 5).

    Args:
        count: K candidates.
        gate: in [0, 1], the mass taken from the true token.
    """

    count: int
    gate: float

    def construct(self, context: Context, appraise: Appraise) -> SoftTargets:
        """One-hot targets smoothed over the top candidates."""
        ids = candidates(context.logits, context.labels, self.count)
        proposal = torch.full(ids.shape, 1 / self.count, device=ids.device)
        return mix(ids, proposal, proposal.new_full((len(ids),), self.gate))


@dataclass
class SelfDistillation(Fixed):
    """The learner's own probabilities on the candidates, behind a constant gate (a control of the paper's Table 5).

    Args:
        count: K candidates.
        gate: in [0, 1], the mass taken from the true token.
    """

    count: int
    gate: float

    def construct(self, context: Context, appraise: Appraise) -> SoftTargets:
        """One-hot targets mixed with what the learner already believes."""
        ids = candidates(context.logits, context.labels, self.count)
        proposal = torch.softmax(candidate_log_probabilities(context.logits.detach(), ids), dim=1)
        return mix(ids, proposal, proposal.new_full((len(ids),), self.gate))


@dataclass
class Reliability:
    """How far the feedback batches agree on token values, remembered over meta steps.

    Agreement is Pearson's r between the values under two halves of the feedback; their mean has the reliability
    ``2 r / (1 + r)`` (Spearman and Brown), by which values shrink. Noise then cannot open the gate as signal does.

    Args:
        shrink: if False values are taken as they are (reliability 1); agreement is still reported.
        memory: weight of the past in the running mean of r, in [0, 1).
    """

    shrink: bool
    memory: float = 0.7
    agreement: float | None = None

    def hear(self, values: list[Tensor]) -> None:
        """Takes the values of the same candidates under each feedback batch (one batch alone says nothing)."""
        if len(values) < 2:
            return
        halves = [torch.stack(part).mean(dim=0) for part in (values[0::2], values[1::2])]
        r = correlation(*halves)
        self.agreement = r if self.agreement is None else self.memory * self.agreement + (1 - self.memory) * r

    @property
    def factor(self) -> float:
        """In [0, 1]: what values are multiplied by."""
        if not self.shrink:
            return 1.0
        r = max(0.0, self.agreement or 0.0)
        return 2 * r / (1 + r)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r over all entries; 0 where one of them does not vary."""
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    scale = a.norm() * b.norm()
    return float((a @ b) / scale) if scale > 0 else 0.0


@dataclass
class Exact:
    """A designer that asks for the exact values of every learner batch, and so needs no network.

    Subclasses give :meth:`shape` (values to targets); gain is cross-fitted: targets made from one half of the feedback
    are valued by the other, which random feedback cannot fool.

    Args:
        count: K candidates.
        reliability: how values shrink.
    """

    count: int
    reliability: Reliability
    _heard: tuple[Context, Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    listens = True

    def shape(self, context: Context, ids: Tensor, values: Tensor) -> SoftTargets:
        """Targets from the values ``[N, K]`` of the candidates."""
        raise NotImplementedError

    def plain(self, context: Context) -> SoftTargets:
        """One-hot targets."""
        return one_hot(context.labels)

    def construct(self, context: Context, appraise: Appraise) -> SoftTargets:
        """Targets from the values under the latest feedback."""
        if self._heard is None or self._heard[0] is not context:
            probe = self._probe(context)
            self._heard = (context, probe.ids, appraise(context, probe).gradient[0])
        (_, ids, values), self._heard = self._heard, None
        return self.shape(context, ids, values)

    def learn(self, context: Context, appraise: Appraise) -> dict[str, float]:
        """Updates the reliability; returns how good the targets are that it would make."""
        probe = self._probe(context)
        values = [appraisal.gradient[0] for appraisal in appraise.each(context, probe)]
        self.reliability.hear(values)
        self._heard = (context, probe.ids, torch.stack(values).mean(dim=0))  # construct needs just these
        halves = [torch.stack(part).mean(dim=0) for part in (values[0::2], values[1::2] or values)]
        plain = probe.mass
        proposals = [self.shape(context, probe.ids, half).mass for half in halves]
        gains = [float(((p - plain) * v).sum()) for p, v in zip(proposals, reversed(halves), strict=True)]
        return {
            "gain": sum(gains) / 2,
            "value_plain": float((plain * sum(halves)).sum() / 2),
            **agreement_metric(self.reliability),
            **target_metrics(proposals[0]),
        }

    def _probe(self, context: Context) -> SoftTargets:
        ids = candidates(context.logits, context.labels, self.count)
        return one_hot(context.labels, self.count, ids)

    def state_dict(self) -> dict[str, Any]:
        """The running agreement."""
        return {"agreement": self.reliability.agreement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the running agreement."""
        self.reliability.agreement = state["agreement"]


@dataclass
class ClosedForm(Exact):
    """Soft targets by the anchored rule from exact values (ours): what ``field`` amortises.

    Args:
        temperature: tau > 0, in standard deviations of s.
        clip: bound on the tilt ``|z|``.
        gate_max: ``alpha_max``.
    """

    temperature: float = 1.0
    clip: float = 2.0
    gate_max: float = 0.5

    def shape(self, context: Context, ids: Tensor, values: Tensor) -> SoftTargets:
        """See :func:`vpretrain.language.targets.anchored`."""
        proposal, gate = anchored(
            standardised(values),
            candidate_log_probabilities(context.logits.detach(), ids),
            temperature=self.temperature,
            clip=self.clip,
            gate_max=self.gate_max,
            reliability=self.reliability.factor,
        )
        return mix(ids, proposal, gate)

    def learn(self, context: Context, appraise: Appraise) -> dict[str, float]:
        """As :meth:`Exact.learn`, with the bound beside the gain."""
        metrics = super().learn(context, appraise)
        assert self._heard is not None
        return metrics | {"gain_bound": gain_bound(self._heard[2], self.gate_max)}


@dataclass
class TokenWeights(Exact):
    """One-hot targets whose tokens count by their value (ours): ``w = 1 + c clip(z(s), +-3)``, >= 0, mean 1.

    Args:
        tilt: ``c`` >= 0, weight per standard deviation of the value.
    """

    tilt: float = 0.4

    def shape(self, context: Context, ids: Tensor, values: Tensor) -> SoftTargets:
        """The true token's mass is its weight, the others have none."""
        z = standardised(values[:, 0] - values[:, 0].mean()).clamp(-3, 3)
        weights = (1 + self.tilt * self.reliability.factor * z).clamp_min(0)
        mass = torch.zeros_like(values)
        mass[:, 0] = weights / weights.mean()
        return SoftTargets(ids, mass)


@dataclass
class SourceWeights(Exact):
    """One-hot targets whose tokens count by their *source* (ours): the mixture is all that feedback may change.

    ``w = 1 + c clip(t / 3, +-1)``, >= 0, mean 1, where t is the t statistic of the source's mean token value against the
    batch's.

    Args:
        tilt: ``c`` >= 0, the most by which a source gains or loses.
    """

    tilt: float = 0.4

    def shape(self, context: Context, ids: Tensor, values: Tensor) -> SoftTargets:
        """The true token's mass is the weight of its source."""
        z = standardised(values[:, 0] - values[:, 0].mean())
        row, at = context.where
        names = sorted({document.source for document in context.batch.documents})
        places = torch.tensor([names.index(d.source) for d in context.batch.documents], device=z.device)
        source = places[context.batch.document[row, at + 1]]
        count = torch.bincount(source, minlength=len(names)).clamp_min(1)
        t = torch.zeros(len(names), dtype=z.dtype, device=z.device).index_add(0, source, z) / count.sqrt()
        weights = (1 + self.tilt * self.reliability.factor * (t / 3).clamp(-1, 1)).clamp_min(0)[source]
        mass = torch.zeros_like(values)
        mass[:, 0] = weights / weights.mean()
        return SoftTargets(ids, mass)


def gain_bound(values: Tensor, gate_max: float) -> float:
    """The most that any soft targets on these candidates could gain: all of ``gate_max`` on the most valuable one.

    It is of the values as they were heard, noise of the feedback included; a designer's *regret* is this less its gain.
    """
    return float(gate_max * (values.max(dim=1).values - values[:, 0]).sum())


def agreement_metric(reliability: Reliability) -> dict[str, float]:
    """``agreement`` (running) and ``reliability`` once two feedback batches were heard."""
    if reliability.agreement is None:
        return {}
    return {"agreement": reliability.agreement, "reliability": reliability.factor}


def target_metrics(mass: Tensor) -> dict[str, float]:
    """Means over the batch: mass off the true token, entropy of the targets (nats), spread of the token weights."""
    weight = mass.sum(dim=1)
    counted = weight > 0
    q = mass[counted] / weight[counted, None]
    return {
        "gate": float((1 - q[:, 0]).mean()),
        "entropy": float(torch.special.entr(q).sum(dim=1).mean()),
        "weight_spread": float(weight.std(correction=0)),
    }
