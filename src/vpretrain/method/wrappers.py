"""Base classes for a learner and for feedback that modify another one."""

from __future__ import annotations

from torch import Tensor

from vpretrain.method.roles import (
    BatchT,
    ContextT,
    Feedback,
    Learner,
    LearnerT,
    Objective,
    State,
    TaskT,
)


class WrappedLearner(Learner[BatchT, ContextT, TaskT]):
    """Delegates to another learner; subclasses override what they change.

    Args:
        learner: the learner whose parameters train.
    """

    def __init__(self, learner: Learner[BatchT, ContextT, TaskT]) -> None:
        self.learner, self.model, self.aligned = learner, learner.model, learner.aligned

    def forward(self, batch: BatchT) -> ContextT:
        return self.learner.forward(batch)

    def loss(self, context: ContextT, task: TaskT) -> Tensor:
        return self.learner.loss(context, task)

    def objective(self, context: ContextT, task: TaskT) -> Objective:
        return self.learner.objective(context, task)

    def after_step(self, progress: float) -> None:
        self.learner.after_step(progress)

    def state_dict(self) -> State:
        return self.learner.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.learner.load_state_dict(state)


class WrappedFeedback(Feedback[LearnerT]):
    """Delegates to other feedback; subclasses define ``gradients``, and the state if they add any.

    Args:
        feedback: the real feedback.
    """

    def __init__(self, feedback: Feedback[LearnerT]) -> None:
        self.feedback = feedback

    def prepare(self, learner: LearnerT) -> None:
        self.feedback.prepare(learner)

    def metrics(self) -> dict[str, float]:
        return self.feedback.metrics()

    def state_dict(self) -> State:
        return self.feedback.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.feedback.load_state_dict(state)
