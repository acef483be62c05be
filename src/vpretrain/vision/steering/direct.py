"""A reference outside the method: a learner that trains on the feedback labels themselves."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor

from vpretrain.config.arms import TrainsOn
from vpretrain.method import vectors
from vpretrain.method.roles import ContextT, Feedback, Learner, TaskT
from vpretrain.method.simple import BaselineDesigner
from vpretrain.method.wrappers import WrappedLearner
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
    """Weight of g_down in the learner's gradient."""

    def build(self, site: Site) -> BaselineDesigner:
        return BaselineDesigner(site.surface())

    def trained(
        self, learner: Learner[ImageBatch, ContextT, TaskT], feedback: Feedback[Any]
    ) -> DirectLearner[ContextT, TaskT]:
        return DirectLearner(learner, feedback, self.direct_weight)


class WithGradient(torch.autograd.Function):
    """Returns a loss unchanged, and adds terms to its gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, terms: list[Tensor], *parameters: Tensor) -> Tensor:
        """``terms``: one per parameter, of its shape."""
        ctx.terms = [
            term.to(parameter.dtype) for term, parameter in zip(terms, parameters, strict=True)
        ]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return gradient, None, *(gradient.to(term.dtype) * term for term in ctx.terms)


class DirectLearner(WrappedLearner[ImageBatch, ContextT, TaskT]):
    """A learner whose gradient includes that of the feedback loss.

    Args:
        learner: the wrapped learner.
        feedback: the feedback whose gradient is computed at every step.
        weight: weight of g_down, > 0.
    """

    def __init__(
        self, learner: Learner[ImageBatch, ContextT, TaskT], feedback: Feedback[Any], weight: float
    ) -> None:
        super().__init__(learner)
        self.feedback, self.weight = feedback, weight

    def loss(self, context: ContextT, task: TaskT) -> Tensor:
        """Return the self-supervised loss, with ``weight * g_down`` added to its gradient in S."""
        down = vectors.mean(self.feedback.gradients(self.learner))
        terms = [self.weight * down[name].detach() for name in self.aligned]
        loss: Tensor = WithGradient.apply(
            self.learner.loss(context, task), terms, *self.aligned.values()
        )
        return loss
