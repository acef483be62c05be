"""What a task is worth under the latest feedback: alignment and estimator put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.directional import Estimator
from vpretrain.method.roles import Estimate, Gradient, Learner
from vpretrain.method.value import Alignment
from vpretrain.system import distributed


class ValueEstimator:
    """Holds the latest downstream gradients and values tasks along them.

    Args:
        learner: gives S and the self-supervised objective.
        alignment: turns ``g_down`` (and, where it needs it, ``g_pre``) into a direction.
        estimator: takes the directional derivative.

    Attributes:
        fraction: of this process's part in the loss of the batch that is valued; 1 for a process on
            its own. A value is that of the whole batch, its gradient with respect to this process's
            controls likewise.
    """

    def __init__(self, learner: Learner, alignment: Alignment, estimator: Estimator) -> None:
        self.learner, self.alignment, self.estimator = learner, alignment, estimator
        self.downstream: list[Gradient] = []
        self.step_size = 0.0
        self.fraction = 1.0

    def update(
        self, downstream: Sequence[Gradient], preconditioner: Gradient | None, step_size: float
    ) -> None:
        """Takes new downstream gradients, one per feedback batch.

        Args:
            downstream: ``g_down`` over S, one or more.
            preconditioner: ``P`` over S; used by ``optimizer_aware`` alone, and None counts as the
                identity.
            step_size: the learning rate of the step that is valued (``lower_bound`` only).
        """
        if self.alignment.preconditioned and preconditioner is not None:
            downstream = [
                {name: preconditioner[name] * g for name, g in down.items()} for down in downstream
            ]
        self.downstream, self.step_size = list(downstream), step_size

    def merge(self) -> None:
        """Keeps the mean of what was heard and no more: all that is asked for until the next meta
        step.
        """
        self.downstream = [vectors.mean(self.downstream)]

    def state_dict(self) -> dict[str, Any]:
        return {"downstream": self.downstream, "step_size": self.step_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.downstream = [
            {name: piece.to(self.learner.aligned[name].device) for name, piece in heard.items()}
            for heard in state["downstream"]
        ]
        self.step_size = state["step_size"]

    def __call__(self, context: Any, task: Any) -> Estimate:
        """Value of ``task`` and ``dV/d controls`` along the mean of the downstream gradients."""
        return self._along(context, task, [vectors.mean(self.downstream)])[0]

    def each(self, context: Any, task: Any) -> list[Estimate]:
        """The same along each feedback batch's own gradient, in the order they were heard."""
        return self._along(context, task, self.downstream)

    def _along(self, context: Any, task: Any, downstream: Sequence[Gradient]) -> list[Estimate]:
        controls = tuple(control.detach().requires_grad_() for control in task.controls())
        objective = self.learner.objective(context, task.with_controls(controls))
        inputs = tuple(tensor.detach().requires_grad_() for tensor in objective.inputs)

        def loss(parameters: Mapping[str, Tensor]) -> Tensor:
            # As views: a module that leaves enter cannot be counted in FLOPs.
            return self.fraction * objective.loss(
                parameters, tuple(tensor.view_as(tensor) for tensor in inputs)
            )

        def estimate(direction: Gradient, value: Tensor | None = None) -> Estimate:
            found = self.estimator(loss, point, direction, inputs)
            # What the inputs are worth, taken back to the controls: a no-op where they are the
            # same.
            gradient = torch.autograd.grad(
                objective.inputs, controls, found.gradient, retain_graph=True
            )
            return Estimate(distributed.total(found.value) if value is None else value, gradient)

        # Narrow dtypes cannot resolve a small perturbation: S is valued in float32 or wider.
        point = {
            name: vectors.wide(parameter.detach())
            for name, parameter in self.learner.aligned.items()
        }
        if self.alignment.linear:
            return [estimate(down) for down in downstream]
        with torch.enable_grad():
            leaves = {name: value.clone().requires_grad_() for name, value in point.items()}
            pre = vectors.named(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())))
            distributed.all_reduce(list(pre.values()))
        estimates = []
        for down in downstream:
            value, direction = self.alignment(down, pre, self.step_size)
            estimates.append(estimate(direction, value))
        return estimates
