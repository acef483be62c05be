"""Designers whose network emits targets and a gate and is trained by gradient ascent on their
value: the base class, and a designer over the learner's final hidden states (ours). The paper's own
network is in :mod:`vpretrain.language.steering.topk_augmentor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.targets import SoftTargets, mix
from vpretrain.language.steering.arms import ARMS, CandidatesArm, Cost, Site
from vpretrain.language.steering.networks import HiddenArm, HiddenDesigner, NetworkArm, Scored
from vpretrain.language.steering.rules import Anchored, Candidates
from vpretrain.language.steering.scorer import CandidateScorer, scorer_cost
from vpretrain.method.network import Learning
from vpretrain.method.roles import Learned, ValueFunction
from vpretrain.system import distributed

Start = Literal["uniform", "learner"]


@dataclass(frozen=True)
class Prices:
    """The regulariser ``lambda R(phi)`` of eq. 26, in the unit of the value (``value.unit``).

    Args:
        entropy_bonus: >= 0, bonus per nat of the targets' entropy.
        anchor: >= 0, price per nat of ``gate * KL(r || p)`` (ours; it plays the role of the
            temperature in the closed form).
        gate: >= 0, price of the mean gate, which keeps the task close to the baseline's.
    """

    entropy_bonus: float = 0.0
    anchor: float = 0.0
    gate: float = 0.0


class Climbing(Scored):
    """A designer whose network emits ``r`` and the gate, trained by ascent on the value (eq. 26,
    42).

    The gradient is ``dV/d phi = sum s_t(v) dq_t(v)/d phi``. It needs no graph through the learner,
    which only enters through s. Unlike in :class:`vpretrain.method.network.NetworkDesigner`, the
    value is linear in the targets, so the candidates' values give the value of any targets over
    them, including one-hot targets.

    Args:
        network: ``phi``, which emits scores and a gate.
        targets: gives candidates (eq. 14) and the bound of the gate, alpha_max.
        learning: see :class:`vpretrain.method.network.Learning`.
        prices: the regulariser.
        start: what ``r`` is before training: ``uniform`` over the candidates, or the ``learner``'s
            own probabilities of them.
    """

    def __init__(
        self,
        network: nn.Module,
        targets: Anchored,
        learning: Learning,
        prices: Prices,
        start: Start = "uniform",
    ) -> None:
        super().__init__(network, targets, learning)
        self.gate_max, self.prices, self.start = targets.gate_max, prices, start

    def propose(self, context: Context) -> SoftTargets:
        """``q = (1 - alpha) one_hot + alpha r`` (eq. 15), both from the network."""
        return self._targets(self.rule.probe(context))[0]

    def _targets(self, candidates: Candidates) -> tuple[SoftTargets, Tensor, Tensor]:
        scores, gate = self.score(candidates)
        if self.start == "learner":
            scores = scores + candidates.log_p
        log_r, alpha = torch.log_softmax(scores, dim=1), self.gate_max * gate
        return mix(candidates.ids, log_r.exp(), alpha), log_r, alpha

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        candidates = self.rule.probe(context)
        estimates = value_of.each(context, candidates)
        values = self.control_gradient(estimates)
        unit, prices = self._per_token(values), self.prices
        # Renormalised over the candidates, like r.
        log_p = torch.log_softmax(candidates.log_p, dim=1)
        metrics: dict[str, float] = {}
        for _ in range(self.learning.updates):
            targets, log_r, alpha = self._targets(candidates)
            # Measured before the first update, on a batch the network has not been trained on.
            metrics = metrics or self.gain(candidates, targets, values, estimates)
            value = (targets.mass * unit).sum(dim=1)
            price = prices.anchor * (log_r.exp() * (log_r - log_p)).sum(dim=1) + prices.gate
            # Clamped: the entropy's slope is infinite at zero mass, which all other candidates have
            # under a closed gate.
            entropy = -(targets.mass * targets.mass.clamp_min(1e-12).log()).sum(dim=1)
            self.descend(-distributed.mean(value - alpha * price + prices.entropy_bonus * entropy))
        return Learned(metrics)

    def _per_token(self, values: Tensor) -> Tensor:
        """Values ``[N, K]`` whose mean over tokens is maximised: under the unit ``raw`` this mean
        is V itself (a sum over tokens), otherwise the mean value in standard deviations."""
        reliability = self.learning.reliability
        if reliability.unit == "raw":
            tokens = distributed.total(values.new_tensor(float(len(values))))
            return reliability.factor * values * tokens
        return reliability.shrunk(values)


class CandidateDesigner(Climbing, HiddenDesigner):
    """An ascent designer over the learner's final hidden states (ours); its network is told which
    candidate is the true token.

    Args:
        embedding: see :class:`HiddenDesigner`.
        network, targets, learning, prices, start: see :class:`Climbing`.
    """

    def __init__(
        self,
        network: CandidateScorer,
        embedding: Tensor,
        targets: Anchored,
        learning: Learning,
        prices: Prices,
        start: Start = "uniform",
    ) -> None:
        super().__init__(network, targets, learning, prices, start)
        self.embedding = embedding


class ClimbingArm(NetworkArm, CandidatesArm):
    """The keys of arms whose network ascends the value."""

    gate_max: Annotated[float, Field(ge=0, le=1)] = 0.5
    """alpha_max, the maximum mass that may be moved away from the true token (eq. 15)."""
    entropy_bonus: NonNegativeFloat = 0.0
    """Bonus per nat of the targets' entropy, in the unit of the value."""
    anchor: NonNegativeFloat = 0.0
    """Price per nat of KL divergence of the targets from the learner, in the unit of the value."""
    gate_price: NonNegativeFloat = 0.0
    """Price of an open gate, in the unit of the value: lambda of eq. 26, which keeps the task close
    to the baseline's."""
    start: Start = "uniform"
    """Targets before training: ``uniform`` over the candidates (as in the paper, whose scores start
    near zero), or the ``learner``'s own probabilities of them (ours), to which scores are added."""

    @property
    def targets(self) -> Anchored:
        return Anchored(self.candidates, gate_max=self.gate_max)

    @property
    def prices(self) -> Prices:
        return Prices(self.entropy_bonus, self.anchor, self.gate_price)


@ARMS.declare(
    "hidden_ascent",
    "as `ascent`, by a network over the learner's hidden states (not from the paper)",
)
class HiddenAscentArm(HiddenArm, ClimbingArm):
    cost = Cost(candidates=True, network=scorer_cost)

    def build(self, site: Site) -> CandidateDesigner:
        network, learning = self.network(site, gated=True), self.learning(site)
        options = (self.targets, learning, self.prices, self.start)
        return CandidateDesigner(network, site.embedding, *options)
