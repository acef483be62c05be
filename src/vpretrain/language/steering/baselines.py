"""The designers of language that use no feedback, one class an arm."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vpretrain.config.arms import TrainsOn
from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.predictions import Predictions
from vpretrain.language.learner.targets import SoftTargets, mix, one_hot
from vpretrain.language.steering.arms import ARMS, CandidatesArm, Cost, LanguageArm, Site, TiltArm
from vpretrain.language.steering.rules import TokenWeights
from vpretrain.method.roles import Designer, ValueFunction
from vpretrain.method.rules import standardised


class Fixed(Designer[Context, SoftTargets]):
    """A designer that uses no feedback and keeps no state."""

    def baseline_task(self, context: Context) -> SoftTargets:
        return one_hot(context.labels)


class OneHot(Fixed):
    """Next-token prediction as it always was: the baseline."""


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

    uses_feedback = False
    cost = Cost(candidates=True, uses_feedback=False)

    control_gate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The constant gate."""


@dataclass
class ConstantGate(Fixed):
    """Targets behind a constant gate (controls of the paper's Table 5).

    Args:
        count: K candidates.
        gate: in [0, 1], the mass taken from the true token.
    """

    count: int
    gate: float

    @abstractmethod
    def proposal(self, predictions: Predictions, ids: Tensor) -> Tensor:
        """Over the candidates, ``[N, K]``."""

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        ids = context.predictions.candidates(self.count)
        proposal = self.proposal(context.predictions, ids)
        return mix(ids, proposal, proposal.new_full((len(ids),), self.gate))


class UniformSmoothing(ConstantGate):
    """The same mass on every candidate."""

    def proposal(self, predictions: Predictions, ids: Tensor) -> Tensor:
        return torch.full(ids.shape, 1 / self.count, device=ids.device)


@ARMS.declare(
    "uniform_smoothing", "control: a constant part of every target spread evenly over likely tokens"
)
class UniformSmoothingArm(GateArm):
    def build(self, site: Site) -> UniformSmoothing:
        return UniformSmoothing(self.candidates, self.control_gate)


class SelfDistillation(ConstantGate):
    """The learner's own probabilities of the candidates."""

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
    """Token weights by the learner's own surprise in the place of value: less weight to what it
    finds improbable, as a filter of noise without feedback would give.

    Args:
        rule: as token weights have it.
    """

    rule: TokenWeights

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        probe = self.rule.probe(context)
        return self.rule.task(probe, standardised(probe.log_p))


@ARMS.declare(
    "loss_weights",
    "control: each token weighted by how surprising the learner finds it, no feedback",
)
class LossWeightsArm(TiltArm):
    uses_feedback = False

    def build(self, site: Site) -> LossWeights:
        return LossWeights(TokenWeights(self.tilt))
