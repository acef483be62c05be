"""Values and weights of a batch, compared with those of the recent batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vpretrain.method.moments import Moments
from vpretrain.method.roles import ContextT, State, Task, TaskT

if TYPE_CHECKING:
    from vpretrain.method.exact import Rule

ProbeT = TypeVar("ProbeT", bound=Task)


class Recent:
    """Makes tasks from values, with the recent batches as the scale.

    Values are taken from their mean and in units of their spread, and weights over their mean, over
    these batches and not over their own. So a batch of few documents, or of one, is weighted as a
    whole, and a step in many small batches is steered like one in a single batch.

    Attributes:
        values: moments of the values.
        weights: moments of the sums over a batch of a task's weights, and of its baseline task's.
    """

    def __init__(self) -> None:
        self.values, self.weights = Moments(), Moments()

    def task(
        self, rule: Rule[ContextT, ProbeT, TaskT], probe: ProbeT, values: Tensor, factor: float = 1
    ) -> TaskT:
        """Adds a batch, and returns the rule's task for it. A collective call.

        Args:
            rule: makes the task.
            probe: of the batch.
            values: in any unit and from any origin.
            factor: that values in standard deviations are multiplied by.
        """
        self.values.update(values)
        task = rule.task(probe, factor * self.values.standardised(values))
        return self.levelled(rule, probe, task)

    def levelled(self, rule: Rule[ContextT, ProbeT, TaskT], probe: ProbeT, task: TaskT) -> TaskT:
        """Adds the weights of a batch, and returns the task with weights over their mean; the same
        task if the rule is not ``weighted``. A collective call."""
        if not rule.weighted:
            return task
        weights, *others = task.controls()
        self.weights.update(weights.sum()[None], probe.controls()[0].sum()[None])
        mean, plain = self.weights.mean
        # Exactly 1 after plain weights alone; nothing to divide by if all are 0.
        level = torch.where(mean == 0, 1, plain / mean).to(weights.dtype)
        return task.with_controls((weights * level, *others))

    def state_dict(self) -> State:
        """Returns the states of values and weights."""
        return {"values": self.values.state_dict(), "weights": self.weights.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        self.values.load_state_dict(state["values"])
        self.weights.load_state_dict(state["weights"])
