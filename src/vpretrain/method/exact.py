"""The designer that needs no network: it takes the exact value of every choice in the batch, and a
rule says which task follows (ours).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import (
    Bounds,
    ContextT,
    Designer,
    Learned,
    Metrics,
    State,
    Task,
    TaskT,
    ValueFunction,
)
from vpretrain.method.rules import standardised
from vpretrain.system import distributed

ProbeT = TypeVar("ProbeT", bound=Task)


class Rule(ABC, Generic[ContextT, ProbeT, TaskT]):
    """A way from the values of choices to a task; it never sees feedback itself.

    The choices are the first control of its tasks, and the learner's loss is linear in it, so that
    values do not depend on the task that they are taken at.
    """

    @abstractmethod
    def baseline_task(self, context: ContextT) -> TaskT:
        """The task without steering, as cheap as there is one."""

    @abstractmethod
    def probe(self, context: ContextT) -> ProbeT:
        """The same with the control, where values are taken: a task that also carries whatever the
        rule reads of the batch."""

    @abstractmethod
    def values(self, probe: ProbeT, gradient: Tensor) -> Tensor:
        """The values of the choices, in the units of the loss and in any shape, from
        ``dV/d control``; linear in it."""

    @abstractmethod
    def task(self, probe: ProbeT, values: Tensor) -> TaskT:
        """The task for :meth:`values`, given in the unit of
        :class:`vpretrain.method.reliability.Reliability` and shrunk by it. Zeros give the baseline
        task bit for bit."""

    @property
    def bounds(self) -> Bounds:
        """Where figures of :meth:`metrics` stand when the tasks are no longer designed."""
        return {"gate": (0.0, 1.0)}

    def metrics(self, probe: ProbeT, task: TaskT, gradient: Tensor) -> Metrics:
        """How a task of this rule looks; ``gradient`` is the ``dV/d control`` of all the feedback.

        For any surface ``gate``: half of what moved as a fraction of all, mass that has left where
        it was, or weight.
        """
        before, after = probe.controls()[0], task.controls()[0]
        moved, whole = distributed.total(torch.stack([(after - before).abs().sum(), before.sum()]))
        return {"gate": float(moved / (2 * whole))}


@dataclass
class ExactDesigner(Designer[ContextT, TaskT], Generic[ContextT, ProbeT, TaskT]):
    """A designer that takes the exact values of every learner batch, and so needs no network.

    Gain is cross-fitted: tasks made from one half of the feedback are valued by the other, which
    random feedback cannot fool. They are made as if the values were fully reliable, since how far
    the halves agree is what the gain is about. With one feedback batch there is no other half, and
    no gain for a guard to look at.

    Args:
        rule: what follows from the values.
        reliability: how values shrink.
    """

    rule: Rule[ContextT, ProbeT, TaskT]
    reliability: Reliability
    uses_feedback = True

    @property
    def bounds(self) -> Bounds:
        return self.rule.bounds

    def baseline_task(self, context: ContextT) -> TaskT:
        return self.rule.baseline_task(context)

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        """The task that the values under the latest feedback ask for."""
        probe = self.rule.probe(context)
        return self.shape(probe, value_of(context, probe).gradient[0])

    def shape(self, probe: ProbeT, gradient: Tensor) -> TaskT:
        """The task that ``dV/d control`` asks for."""
        values = self.rule.values(probe, gradient)
        return self.rule.task(probe, self.reliability.shrunk(values))

    def learn(self, context: ContextT, value_of: ValueFunction[ContextT]) -> Learned[TaskT]:
        """Updates the reliability. The values of this batch are known with it, and so its task."""
        probe = self.rule.probe(context)
        gradients = [each.gradient[0] for each in value_of.each(context, probe)]
        self.reliability.update([self.rule.values(probe, gradient) for gradient in gradients])
        mean = torch.stack(gradients).mean(dim=0)
        if not value_of.linear:  # or the next task would follow another direction than this one
            mean = value_of(context, probe).gradient[0]
        plain, task = probe.controls()[0], self.shape(probe, mean)
        metrics = {
            "value_baseline": float(distributed.total((plain * mean).sum())),
            **self.rule.metrics(probe, task, mean),
            **self.reliability.metrics(),
        }
        if len(gradients) > 1:
            metrics["gain"] = self._gain(probe, gradients)
        return Learned(metrics, task)

    def _gain(self, probe: ProbeT, gradients: Sequence[Tensor]) -> float:
        """The mean gain of the tasks that either half of the feedback asks for, valued by the other
        half."""
        halves = [torch.stack(tuple(part)).mean(0) for part in (gradients[0::2], gradients[1::2])]
        plain, gains = probe.controls()[0], []
        for own, other in (halves, reversed(halves)):
            task = self.rule.task(probe, standardised(self.rule.values(probe, own)))
            gains.append(float(distributed.total(((task.controls()[0] - plain) * other).sum())))
        return sum(gains) / 2

    def state_dict(self) -> State:
        return self.reliability.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.reliability.load_state_dict(state)
