"""Designers whose network emits targets and a gate, and climbs their value: what they share, and
the one that reads the learner's final hidden states (ours). The paper's own network is in
:mod:`vpretrain.language.steering.topk_augmentor`.
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
    """``lambda R(phi)`` of eq. 26: what targets cost, in the unit of the value (``value.unit``).

    Args:
        entropy_bonus: >= 0, for the entropy of the targets, per nat.
        anchor: >= 0, price of ``gate * KL(r || p)`` per nat (ours; the temperature of the closed
            form is the same price).
        gate: >= 0, price of the mean gate: it keeps the task close to the baseline's.
    """

    entropy_bonus: float = 0.0
    anchor: float = 0.0
    gate: float = 0.0


class Climbing(Scored):
    """A designer whose ``r`` and gate come from the network, which ascends the value (eq. 26, 42).

    The gradient is ``dV/d phi = sum s_t(v) dq_t(v)/d phi``, without a graph through the learner,
    which enters by s alone. The value is linear in the targets, unlike that of
    :class:`vpretrain.method.network.NetworkDesigner`: the candidates' values give that of any
    targets over them, one-hot ones too.

    Args:
        network: ``phi``, which also gives a gate.
        targets: gives candidates (eq. 14) and the bound of the gate, alpha_max.
        learning: see :class:`vpretrain.method.network.Learning`.
        prices: what targets cost.
        start: what ``r`` is before the network has learned: ``uniform`` over the candidates, or
            the ``learner``'s own probabilities of them.
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

    def _targets(self, among: Candidates) -> tuple[SoftTargets, Tensor, Tensor]:
        scores, gate = self.score(among)
        if self.start == "learner":
            scores = scores + among.log_p
        log_r, alpha = torch.log_softmax(scores, dim=1), self.gate_max * gate
        return mix(among.ids, log_r.exp(), alpha), log_r, alpha

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        among = self.rule.probe(context)
        values = self.control_gradient(value_of.each(context, among))
        unit, prices = self._per_token(values), self.prices
        log_p = torch.log_softmax(among.log_p, dim=1)  # over the candidates, as r is
        metrics: dict[str, float] = {}
        for _ in range(self.learning.updates):
            targets, log_r, alpha = self._targets(among)
            # Before the first update: a batch that the network has not learned from.
            metrics = metrics or self.gain(among, targets, values)
            value = (targets.mass * unit).sum(dim=1)
            price = prices.anchor * (log_r.exp() * (log_r - log_p)).sum(dim=1) + prices.gate
            # Clamped: the slope of the entropy is infinite at zero mass, where a closed gate puts
            # every other candidate.
            entropy = -(targets.mass * targets.mass.clamp_min(1e-12).log()).sum(dim=1)
            self.descend(-distributed.mean(value - alpha * price + prices.entropy_bonus * entropy))
        return Learned(metrics)

    def _per_token(self, values: Tensor) -> Tensor:
        """Values ``[N, K]`` whose mean over tokens is what is climbed: V itself (which is a sum
        over tokens) where it is raw, and otherwise its mean in standard deviations."""
        reliability = self.learning.reliability
        if reliability.unit == "raw":
            tokens = distributed.total(values.new_tensor(float(len(values))))
            return reliability.factor * values * tokens
        return reliability.shrunk(values)


class CandidateDesigner(Climbing, HiddenDesigner):
    """Ours: the network reads the learner's final hidden states, and knows of the true token that
    it is one of the candidates.

    Args:
        embedding: as :class:`HiddenDesigner`.
        network, targets, learning, prices, start: as :class:`Climbing`.
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
    """alpha_max: the most mass that may leave the true token (eq. 15)."""
    entropy_bonus: NonNegativeFloat = 0.0
    """Bonus for the entropy of the targets, in the unit of the value, a nat."""
    anchor: NonNegativeFloat = 0.0
    """Price of a nat of KL from the targets to the learner, in the unit of the value."""
    gate_price: NonNegativeFloat = 0.0
    """Price of an open gate, in the unit of the value: lambda of eq. 26, which keeps the task close
    to the baseline's."""
    start: Start = "uniform"
    """Where the targets begin: even over the candidates (as the paper's, whose softmax starts near
    zero), or the learner's own probabilities of them (ours), to which the network adds its scores.
    """

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
