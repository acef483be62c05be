"""Designers with a network, including the paper's: gradient ascent on the value of the choices."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor, nn

from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import (
    Bounds,
    ContextT,
    Designer,
    Estimate,
    Learned,
    Metrics,
    State,
    TaskT,
    ValueFunction,
    detached,
    mean_value,
)
from vpretrain.method.rules import standardised
from vpretrain.system import distributed
from vpretrain.system.errors import NonFinite


@dataclass
class Learning:
    """Settings of a network's training.

    Args:
        learning_rate: of Adam on ``phi``; 0 leaves the network unchanged.
        reliability: shrinks the values.
        updates: steps on ``phi`` per meta step, at least 1. All share one feedback gradient, which
            is the expensive part.
    """

    learning_rate: float
    reliability: Reliability
    updates: int = 1


class LearnedDesigner(Designer[ContextT, TaskT]):
    """Base class of designers with a network; subclasses define the task and the update.

    Args:
        network: ``phi``.
        learning: see :class:`Learning`.
    """

    uses_feedback = True

    def __init__(self, network: nn.Module, learning: Learning) -> None:
        self.network, self.learning = network, learning
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning.learning_rate)

    @abstractmethod
    def propose(self, context: ContextT) -> TaskT:
        """Returns the task as a function of ``phi``, with its graph."""

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        """Returns the task for the learner's step, without a graph."""
        with torch.no_grad():
            return self.propose(context)

    def control_gradient(self, estimates: Sequence[Estimate]) -> Tensor:
        """Returns ``dV/d control`` of the first control, averaged over the feedback batches.

        Updates the reliability with their agreement.
        """
        gradients = [each.gradient[0] for each in estimates]
        self.learning.reliability.update(gradients)
        return torch.stack(gradients).mean(dim=0)

    def descend(self, loss: Tensor) -> None:
        """Takes one optimizer step on ``phi``, with the gradient norm clipped to 1.

        The loss must be composed of sums and means over all processes, see
        :mod:`vpretrain.system.distributed`.

        Raises:
            NonFinite: the gradient is not finite; ``phi`` is left unchanged.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.all_reduce_gradients(self.network.parameters())
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), 1.0))
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFinite(f"the designer's gradient norm is {norm}, and the step was not taken")
        self.optimizer.step()

    def state_dict(self) -> State:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reliability": self.learning.reliability.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        # The state's rate is that of the run it comes from, which may have had another.
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning.learning_rate
        self.learning.reliability.load_state_dict(state["reliability"])


class Surface(ABC, Generic[ContextT, TaskT]):
    """Where a choice (such as a mask) enters the learner's task, as the task's first control."""

    @property
    def bounds(self) -> Bounds:
        """Bounds of the figures in :meth:`metrics`.

        A figure at its bound means that nothing is chosen any more.
        """
        return {"gate": (0.0, 1.0)}

    @abstractmethod
    def baseline_task(self, context: ContextT) -> TaskT:
        """Returns the task without steering."""

    @abstractmethod
    def valued_baseline_task(self, context: ContextT) -> TaskT:
        """Returns the baseline task with its controls, so that it can be valued."""

    @abstractmethod
    def inputs(self, context: ContextT) -> Tensor:
        """Returns the network's inputs from the batch, detached from the learner."""

    @abstractmethod
    def task(self, context: ContextT, choice: Tensor) -> TaskT:
        """Returns the task under a choice; gradients flow to the choice."""

    def part(self, context: ContextT, rows: int) -> ContextT:
        """Returns the context of the first ``rows`` rows of the batch."""
        raise NotImplementedError("this surface values whole batches")

    def metrics(self, choice: Tensor) -> Metrics:
        """Returns figures that describe a choice.

        ``gate`` is the fraction of it that departs from the baseline, in [0, 1].
        """
        return {}


class NetworkDesigner(LearnedDesigner[ContextT, TaskT]):
    """The paper's designer: a network that ascends the value of its choices.

    ``L_meta = -V + price`` (eq. 26, 54).

    ``dV/d phi = (dV/d control) d control/d phi``: the cotangent of the control carries everything
    about learner and feedback, so no graph through the learner is built here. V need not be linear
    in the control; updates after the first reuse the same, slightly stale cotangent. The next task
    is made by the updated network, detached.

    Args:
        network: ``phi``: maps the surface's inputs to a choice.
        surface: where choices enter the task.
        price: cost of a choice, a scalar in the unit of the value; gradients flow.
        learning: see :class:`Learning`. The value term shrinks by the agreement of the feedback
            batches on the cotangent; under pure noise only the price remains.
        meta_rows: number of rows of the batch that are valued, over all processes, at least 1;
            None: all. Part of a large batch suffices where a choice affects only its own row.
    """

    def __init__(
        self,
        network: nn.Module,
        surface: Surface[ContextT, TaskT],
        price: Callable[[Tensor], Tensor],
        learning: Learning,
        *,
        meta_rows: int | None = None,
    ) -> None:
        super().__init__(network, learning)
        self.surface, self.price, self.meta_rows = surface, price, meta_rows

    @property
    def bounds(self) -> Bounds:
        return self.surface.bounds

    def propose(self, context: ContextT) -> TaskT:
        return self.surface.task(context, self.network(self.surface.inputs(context)))

    def baseline_task(self, context: ContextT) -> TaskT:
        return self.surface.baseline_task(context)

    def learn(self, context: ContextT, value_of: ValueFunction[ContextT]) -> Learned[TaskT]:
        """Takes ``updates`` steps of gradient ascent on the value of the choice."""
        if self.meta_rows is not None:
            context = self.surface.part(context, -(-self.meta_rows // distributed.world()))
        inputs = self.surface.inputs(context)
        choice = self.network(inputs)
        task = self.surface.task(context, choice)
        estimates = value_of.each(context, detached(task))
        gradient = self.control_gradient(estimates)
        baseline = mean_value(value_of.each(context, self.surface.valued_baseline_task(context)))
        metrics = {
            "gain": mean_value(estimates) - baseline,
            "value_baseline": baseline,
            **self.learning.reliability.metrics(),
            **self.surface.metrics(choice.detach()),
        }
        for update in range(self.learning.updates):
            if update:
                choice = self.network(inputs)
                task = self.surface.task(context, choice)
            value = self._tangent(gradient, task.controls()[0])
            self.descend(self.price(choice) - self.learning.reliability.factor * value)
        return Learned(metrics)

    def _tangent(self, gradient: Tensor, control: Tensor) -> Tensor:
        """Returns the linearised value at the control that was valued, up to a constant."""
        if self.learning.reliability.unit == "raw":
            return distributed.total((gradient * control).sum())
        return distributed.mean(standardised(gradient) * control)
