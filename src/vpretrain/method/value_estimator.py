"""Value of tasks under the latest feedback: combines an alignment and an estimator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, cast

import torch
from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.directional import Function, Loss
from vpretrain.method.estimators import Estimator
from vpretrain.method.roles import (
    BatchT,
    ContextT,
    DirectedValue,
    Estimate,
    Gradient,
    Learner,
    State,
    Task,
    TaskT,
    ValueFunction,
)
from vpretrain.method.value import Alignment
from vpretrain.system import distributed
from vpretrain.system.errors import NonFinite


class ValueEstimator(DirectedValue[ContextT], Generic[BatchT, ContextT, TaskT]):
    """Holds the latest downstream gradients, and values tasks along them.

    Calling it values a task on a whole batch; :meth:`on_part` values tasks on part of a batch.

    Args:
        learner: gives S and the self-supervised objective.
        alignment: turns ``g_down`` (and ``g_pre`` if it needs it) into a direction.
        estimator: takes the directional derivative; a plain function is exact, or uses a fixed
            step.

    Attributes:
        feedback_gradients: ``g_down`` over S, one per feedback batch, preconditioned if the
            alignment requires it.
    """

    def __init__(
        self,
        learner: Learner[BatchT, ContextT, TaskT],
        alignment: Alignment,
        estimator: Estimator | Function,
    ) -> None:
        self.learner, self.alignment = learner, alignment
        self.estimator = estimator if isinstance(estimator, Estimator) else Estimator(estimator)
        self.feedback_gradients: list[Gradient] = []
        self.step_size = 0.0

    def update(
        self, gradients: Sequence[Gradient], preconditioner: Gradient | None, step_size: float
    ) -> None:
        """Stores new downstream gradients, one per feedback batch.

        Args:
            gradients: ``g_down`` over S, one or more.
            preconditioner: ``P`` over S, used by ``optimizer_aware`` only; None: the identity.
            step_size: the learning rate of the step that is valued (``lower_bound`` only).
        """
        if self.alignment.preconditioned and preconditioner is not None:
            gradients = [
                {name: preconditioner[name] * piece for name, piece in gradient.items()}
                for gradient in gradients
            ]
        self.feedback_gradients, self.step_size = list(gradients), step_size

    def keep_mean(self) -> None:
        """Replaces the gradients by their mean, all that is needed until the next meta step."""
        self.feedback_gradients = [vectors.mean(self.feedback_gradients)]

    @property
    def linear(self) -> bool:
        return self.alignment.linear

    def __call__(self, context: ContextT, task: Task) -> Estimate:
        return self.on_part()(context, task)

    def each(self, context: ContextT, task: Task) -> list[Estimate]:
        """Returns :meth:`PartValue.each` on the whole batch."""
        return self.on_part().each(context, task)

    def on_part(self, fraction: float = 1.0) -> ValueFunction[ContextT]:
        """Returns a value function on part of a batch.

        Args:
            fraction: weight of this process's part in the loss of the whole batch, in [0, 1]. The
                value is that of the whole batch, over all processes; its gradient is with respect
                to this part's controls.
        """
        return PartValue(self, fraction)

    def along(
        self,
        context: ContextT,
        task: Task,
        gradients: Sequence[Gradient],
        fraction: float = 1.0,
    ) -> list[Estimate]:
        """Returns the values of one task along several downstream gradients.

        Computation that does not depend on the gradient is shared.
        """
        learner, alignment = self.learner, self.alignment
        controls = tuple(control.detach().requires_grad_() for control in task.controls())
        # The cast is safe: only tasks of this learner are valued.
        objective = learner.objective(context, cast(TaskT, task.with_controls(controls)))
        inputs = tuple(tensor.detach().requires_grad_() for tensor in objective.inputs)

        def loss(parameters: Mapping[str, Tensor]) -> Tensor:
            # Views, because the FLOP counter cannot count a module whose inputs are leaves.
            views = tuple(tensor.view_as(tensor) for tensor in inputs)
            return fraction * objective.loss(parameters, views)

        unscaled = objective.here
        here = None if unscaled is None else lambda: fraction * unscaled(inputs)
        narrow = None if objective.narrow is None else _within(objective.narrow, loss)

        def estimate(direction: Gradient, value: Tensor | None = None) -> Estimate:
            of_inputs = self.estimator(loss, point, direction, inputs, here, narrow)
            # Back from the inputs to the controls; a no-op if they are the same tensors.
            gradient = torch.autograd.grad(
                objective.inputs, controls, of_inputs.gradient, retain_graph=True
            )
            if value is None:
                value = distributed.total(of_inputs.value)
            return Estimate(value, gradient)

        # Narrow dtypes cannot resolve a small perturbation, so S is float32 or wider here.
        point = {name: vectors.wide(p.detach()) for name, p in learner.aligned.items()}
        if alignment.linear:
            return [estimate(gradient) for gradient in gradients]
        pretraining_gradient = _gradient(loss, point)
        distributed.all_reduce(list(pretraining_gradient.values()))
        valued = [
            alignment(gradient, pretraining_gradient, self.step_size) for gradient in gradients
        ]
        return [estimate(direction, value) for value, direction in valued]

    def gradient(self, context: ContextT, task: Task) -> Gradient:
        """Returns ``g_pre`` over S of a task on this process's data, in float32 or wider."""
        objective = self.learner.objective(context, cast(TaskT, task))

        def loss(parameters: Mapping[str, Tensor]) -> Tensor:
            return objective.loss(parameters, objective.inputs)

        aligned = self.learner.aligned
        return _gradient(loss, {name: vectors.wide(p.detach()) for name, p in aligned.items()})

    def state_dict(self) -> State:
        """Returns the latest gradients, the step size, and the estimator's state."""
        return {
            "feedback_gradients": self.feedback_gradients,
            "step_size": self.step_size,
            "estimator": {"name": self.estimator.name, **self.estimator.state_dict()},
        }

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        aligned = self.learner.aligned
        self.feedback_gradients = [
            {name: piece.to(aligned[name].device) for name, piece in gradient.items()}
            for gradient in state["feedback_gradients"]
        ]
        self.step_size = state["step_size"]
        estimator = dict(state["estimator"])
        # A different estimator measures its own step.
        if estimator.pop("name", None) == self.estimator.name:
            self.estimator.load_state_dict(estimator)


@dataclass(frozen=True)
class PartValue(ValueFunction[ContextT], Generic[ContextT, TaskT]):
    """Value function on part of a batch, see :meth:`ValueEstimator.on_part`."""

    whole: ValueEstimator[Any, ContextT, TaskT] = field(repr=False)
    fraction: float

    @property
    def linear(self) -> bool:
        return self.whole.linear

    def __call__(self, context: ContextT, task: Task) -> Estimate:
        mean = vectors.mean(self.whole.feedback_gradients)
        return self.whole.along(context, task, [mean], self.fraction)[0]

    def each(self, context: ContextT, task: Task) -> list[Estimate]:
        """Returns the values along each feedback batch's own gradient, for a designer's update.

        Raises:
            NonFinite: a value or its gradient is not finite on some process, so that no designer
                learns from it.
        """
        estimates = self.whole.along(context, task, self.whole.feedback_gradients, self.fraction)
        sums = torch.stack(
            [sum((g.sum() for g in estimate.gradient), estimate.value) for estimate in estimates]
        )
        if any(distributed.any_rank(not bool(sums.isfinite().all()))):
            raise NonFinite("a value of the batch is not finite, and the designer did not learn")
        return estimates


def _within(context: Callable[[], AbstractContextManager[Any]], loss: Loss) -> Loss:
    """Returns the loss as it is inside a context."""

    def inside(parameters: Mapping[str, Tensor]) -> Tensor:
        with context():
            return loss(parameters)

    return inside


def _gradient(loss: Loss, point: Mapping[str, Tensor]) -> Gradient:
    """Returns the gradient of a loss over S at a point, by one ordinary backward pass.

    Zeros for a parameter that the loss does not depend on.
    """
    with torch.enable_grad():
        leaves = {name: value.clone().requires_grad_() for name, value in point.items()}
        pieces = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    return vectors.named(leaves, pieces)
