"""The task designers of language, one class an arm; the training loop never asks which one it has.

Fixed ones hear no feedback: ``OneHot``, ``UniformSmoothing``, ``SelfDistillation``. ``Exact`` asks for the exact values of
the learner's own batch and follows a rule (:mod:`vpretrain.language.rules`). Learned ones, which amortise the values in a
network, are in :mod:`vpretrain.language.learned`.

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
from vpretrain.language.rules import Anchored, Candidates, Rule, TokenWeights
from vpretrain.language.targets import SoftTargets, candidate_log_probabilities, candidates, mix, one_hot
from vpretrain.reliability import Reliability
from vpretrain.rules import standardised


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
class LossWeights(Fixed):
    """Token weights by the learner's own surprise in the place of value: less weight to what it finds improbable.

    A control: a filter of noise that needs no feedback would do this.

    Args:
        rule: as token weights have it.
    """

    rule: TokenWeights

    def construct(self, context: Context, appraise: Appraise) -> SoftTargets:
        """One-hot targets, weighted by the standardised log probability of the true token."""
        among = Candidates(context, 1)
        return self.rule(among, standardised(among.log_p))


@dataclass
class Exact:
    """A designer that asks for the exact values of every learner batch, and so needs no network (ours).

    Gain is cross-fitted: targets made from one half of the feedback are valued by the other, which random feedback
    cannot fool.

    Args:
        count: K candidates.
        rule: what follows from the values.
        reliability: how values shrink.
    """

    count: int
    rule: Rule
    reliability: Reliability
    _heard: tuple[Candidates, Tensor] | None = field(default=None, init=False, repr=False)
    listens = True

    def plain(self, context: Context) -> SoftTargets:
        """One-hot targets."""
        self._heard = None
        return one_hot(context.labels)

    def construct(self, context: Context, appraise: Appraise) -> SoftTargets:
        """Targets from the values under the latest feedback."""
        if self._heard is None or self._heard[0].context is not context:
            among = Candidates(context, self.count)
            self._heard = among, appraise(context, self._probe(among)).gradient[0]
        (among, values), self._heard = self._heard, None
        return self.shape(among, values)

    def shape(self, among: Candidates, values: Tensor) -> SoftTargets:
        """Targets from values ``[N, K]`` in the units of the loss."""
        return self.rule(among, self.reliability.factor * standardised(values))

    def learn(self, context: Context, appraise: Appraise) -> dict[str, float]:
        """Updates the reliability; returns how good the targets are that it would make."""
        among = Candidates(context, self.count)
        probe = self._probe(among)
        values = [appraisal.gradient[0] for appraisal in appraise.each(context, probe)]
        self.reliability.hear(values)
        mean = torch.stack(values).mean(dim=0)
        self._heard = among, mean  # construct needs just these
        halves = [torch.stack(part).mean(dim=0) for part in (values[0::2], values[1::2] or values)]
        plain = probe.mass
        proposals = [self.shape(among, half).mass for half in halves]
        gains = [float(((p - plain) * v).sum()) for p, v in zip(proposals, reversed(halves), strict=True)]
        bound = {"gain_bound": gain_bound(mean, self.rule.gate_max)} if isinstance(self.rule, Anchored) else {}
        return {
            "gain": sum(gains) / 2,
            "value_plain": float((plain * sum(halves)).sum() / 2),
            **bound,
            **self.reliability.metrics(),
            **target_metrics(proposals[0]),
        }

    def _probe(self, among: Candidates) -> SoftTargets:
        return one_hot(among.context.labels, self.count, among.ids)

    def state_dict(self) -> dict[str, Any]:
        """The running agreement."""
        return self.reliability.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the running agreement."""
        self.reliability.load_state_dict(dict(state))


def gain_bound(values: Tensor, gate_max: float) -> float:
    """The most that any soft targets on these candidates could gain: all of ``gate_max`` on the most valuable one.

    It is of the values as they were heard, noise of the feedback included; a designer's *regret* is this less its gain.
    """
    return float(gate_max * (values.max(dim=1).values - values[:, 0]).sum())


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
