"""What the method forbids, as a reference: a learner that trains on the labels themselves."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor

from vpretrain.config.arms import TrainsOn
from vpretrain.method import vectors
from vpretrain.method.roles import ContextT, Feedback, Learner, TaskT
from vpretrain.method.simple import BaselineDesigner
from vpretrain.method.wrapped import WrappedLearner
from vpretrain.vision.data.stream import ImageBatch
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

    def trained(
        self, learner: Learner[ImageBatch, ContextT, TaskT], feedback: Feedback[Any]
    ) -> DirectLearner[ContextT, TaskT]:
        return DirectLearner(learner, feedback, self.direct_weight)


class WithGradient(torch.autograd.Function):
    """A loss whose gradient has other terms on top: the figure is the loss alone."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, terms: list[Tensor], *parameters: Tensor) -> Tensor:
        """``terms``: one a parameter, of its shape."""
        ctx.terms = [
            term.to(parameter.dtype) for term, parameter in zip(terms, parameters, strict=True)
        ]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return gradient, None, *(gradient.to(term.dtype) * term for term in ctx.terms)


class DirectLearner(WrappedLearner[ImageBatch, ContextT, TaskT]):
    """A learner whose loss has the gradient of the feedback loss on top of its own.

    Args:
        learner: the real one.
        feedback: whose gradient is taken at every step.
        weight: of g_down, > 0.
    """

    def __init__(
        self, learner: Learner[ImageBatch, ContextT, TaskT], feedback: Feedback[Any], weight: float
    ) -> None:
        super().__init__(learner)
        self.feedback, self.weight = feedback, weight

    def loss(self, context: ContextT, task: TaskT) -> Tensor:
        """The figure of the self-supervised loss, with ``weight * g_down`` on its gradient in S."""
        down = vectors.mean(self.feedback.gradients(self.learner))
        terms = [self.weight * down[name].detach() for name in self.aligned]
        loss: Tensor = WithGradient.apply(
            self.learner.loss(context, task), terms, *self.aligned.values()
        )
        return loss
