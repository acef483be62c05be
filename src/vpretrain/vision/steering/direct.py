"""What the method forbids, as a reference: a learner that hears the labels themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from vpretrain.config.arms import TrainsOn
from vpretrain.method import vectors
from vpretrain.method.roles import Feedback, Objective
from vpretrain.method.roles import Learner as LearnerRole
from vpretrain.method.simple import BaselineDesigner
from vpretrain.vision.steering.arms import ARMS, Site, VisionArm


@ARMS.declare(
    "direct",
    "reference, not V-pretraining: the feedback loss's gradient is added to the step",
)
class DirectArm(VisionArm):
    uses_feedback = False
    trains_on: ClassVar[TrainsOn] = "feedback"

    direct_weight: PositiveFloat = 1.0
    """What g_down is multiplied by before it is added to the step."""

    def build(self, site: Site) -> BaselineDesigner:
        return BaselineDesigner(site.surface())

    def trained(self, learner: Any, feedback: Feedback) -> DirectLearner:
        return DirectLearner(learner, feedback, self.direct_weight)


@dataclass
class DirectLearner:
    """A learner whose loss has the gradient of the feedback loss on top.

    The figure of the loss is the self-supervised one; its gradient on S has ``weight * g_down``
    added.

    Args:
        learner: the real one.
        feedback: heard at every step.
        weight: of g_down, > 0.
    """

    learner: LearnerRole
    feedback: Feedback
    weight: float

    @property
    def model(self) -> nn.Module:
        return self.learner.model

    @property
    def aligned(self) -> dict[str, nn.Parameter]:
        return self.learner.aligned

    def forward(self, batch: Any) -> Any:
        return self.learner.forward(batch)

    def loss(self, context: Any, task: Any) -> Tensor:
        """The self-supervised loss, with ``weight * g_down`` added to its gradient on S."""
        down = vectors.mean(self.feedback.gradients(self.learner))
        pushes = [(down[name].detach() * p).sum() for name, p in self.aligned.items()]
        push = self.weight * torch.stack([each.to(torch.float32) for each in pushes]).sum()
        return self.learner.loss(context, task) + (push - push.detach())

    def objective(self, context: Any, task: Any) -> Objective:
        return self.learner.objective(context, task)

    def after_step(self, progress: float) -> None:
        self.learner.after_step(progress)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)
