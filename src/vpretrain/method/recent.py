"""Values and weights of a batch, compared with those of the recent batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vpretrain.method.moments import Moments
from vpretrain.method.roles import ContextT, State, Task, TaskT
from vpretrain.system import distributed

if TYPE_CHECKING:
    from vpretrain.method.exact import Rule

ProbeT = TypeVar("ProbeT", bound=Task)


class Recent:
    """Makes tasks from values, with the recent batches as the scale.

    Values are standardised, and weights divided by their mean, by the mean and standard deviation
    over these batches and not over their own. So a batch of few documents, or of one, is weighted
    as a whole, and a step in many small batches is steered like one in a single batch.

    Attributes:
        values: moments of the values.
        sums: ``[2]`` float64, sums of the weights of tasks and of their baseline tasks, to which
            batches count as in the moments.
    """

    def __init__(self) -> None:
        self.values = Moments()
        self.sums = torch.zeros(2, dtype=torch.float64)

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
        return self.normalised(rule, probe, task)

    def normalised(self, rule: Rule[ContextT, ProbeT, TaskT], probe: ProbeT, task: TaskT) -> TaskT:
        """Adds the weights of a batch, and returns the task with weights divided by their mean; the
        same task if the rule is not ``weighted``. A collective call."""
        if not rule.weighted:
            return task
        weights, *others = task.controls()
        here = torch.stack([weights.sum(), probe.controls()[0].sum()]).detach().double()
        self.sums = distributed.total(here) + self.values.memory * self.sums.to(here)
        weighted, plain = self.sums
        # Exactly 1 after plain weights alone; nothing to divide by if all are 0.
        scale = torch.where(weighted == 0, 1, plain / weighted).to(weights.dtype)
        return task.with_controls((weights * scale, *others))

    def state_dict(self) -> State:
        """Returns the moments and the sums."""
        return {"values": self.values.state_dict(), "sums": self.sums}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        self.values.load_state_dict(state["values"])
        self.sums = state["sums"]
