"""Language designers that use no feedback, one class per arm."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vpretrain.config.arms import Role, TrainsOn
from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.predictions import Predictions
from vpretrain.language.learner.targets import SoftTargets, mix, one_hot
from vpretrain.language.steering.arms import ARMS, CandidatesArm, Cost, LanguageArm, Site, TiltArm
from vpretrain.language.steering.rules import TokenWeights
from vpretrain.method.recent import Recent
from vpretrain.method.roles import Designer, State, ValueFunction


class Fixed(Designer[Context, SoftTargets]):
    """A designer that uses no feedback."""

    def baseline_task(self, context: Context) -> SoftTargets:
        return one_hot(context.labels)


class OneHot(Fixed):
    """Ordinary next-token prediction: the baseline."""


@ARMS.declare("onehot", "next-token prediction as it always was: the baseline")
class OneHotArm(LanguageArm):
    uses_feedback = False
    cost = Cost(uses_feedback=False)

    def build(self, site: Site) -> OneHot:
        return OneHot()


@ARMS.declare(
    "feedback_sft",
    "reference, not V-pretraining: trains on the feedback rows themselves in the place of the "
    "stream",
)
class FeedbackArm(LanguageArm):
    uses_feedback = False
    trains_on: ClassVar[TrainsOn] = "feedback"

    def build(self, site: Site) -> OneHot:
        return OneHot()


class GateArm(CandidatesArm):
    """The keys of controls whose gate is constant."""

    role: ClassVar[Role] = "control"

    uses_feedback = False
    cost = Cost(candidates=True, uses_feedback=False)

    control_gate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Constant fraction of mass that is moved from the true token to the proposal."""


@dataclass
class ConstantGate(Fixed):
    """Soft targets with a constant gate (controls of the paper's Table 5).

    Args:
        count: K, number of candidates.
        gate: in [0, 1], mass moved from the true token to the proposal.
    """

    count: int
    gate: float

    @abstractmethod
    def proposal(self, predictions: Predictions, ids: Tensor) -> Tensor:
        """The distribution ``[N, K]`` over the candidates ``ids`` that gets the gate's mass."""

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        ids = context.predictions.candidates(self.count)
        proposal = self.proposal(context.predictions, ids)
        return mix(ids, proposal, proposal.new_full((len(ids),), self.gate))


class UniformSmoothing(ConstantGate):
    """A constant gate whose proposal is uniform over the candidates."""

    def proposal(self, predictions: Predictions, ids: Tensor) -> Tensor:
        return torch.full(ids.shape, 1 / self.count, device=ids.device)


@ARMS.declare(
    "uniform_smoothing", "control: a constant part of every target spread evenly over likely tokens"
)
class UniformSmoothingArm(GateArm):
    def build(self, site: Site) -> UniformSmoothing:
        return UniformSmoothing(self.candidates, self.control_gate)


class SelfDistillation(ConstantGate):
    """A constant gate whose proposal is the learner's own distribution over the candidates."""

    def proposal(self, predictions: Predictions, ids: Tensor) -> Tensor:
        return torch.softmax(predictions.log_p(ids), dim=1)


@ARMS.declare(
    "self_distillation", "control: the same part spread by the learner's own probabilities"
)
class SelfDistillationArm(GateArm):
    def build(self, site: Site) -> SelfDistillation:
        return SelfDistillation(self.candidates, self.control_gate)


@dataclass
class LossWeights(Fixed):
    """Token weights from the learner's log probabilities in place of values: improbable tokens
    weigh less, as in a noise filter without feedback.

    Args:
        rule: turns log probabilities into token weights.
    """

    rule: TokenWeights
    recent: Recent = field(default_factory=Recent, init=False)

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        probe = self.rule.probe(context)
        return self.recent.task(self.rule, probe, probe.log_p)

    def state_dict(self) -> State:
        return self.recent.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.recent.load_state_dict(state)


@ARMS.declare(
    "loss_weights",
    "control: tokens that the learner finds improbable weigh less, no feedback",
)
class LossWeightsArm(TiltArm):
    role: ClassVar[Role] = "control"
    uses_feedback = False

    def build(self, site: Site) -> LossWeights:
        return LossWeights(TokenWeights(self.tilt))
