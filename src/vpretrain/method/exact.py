"""Designer without a network: a rule turns the exact value of every choice into a task (ours)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vpretrain.method.recent import Recent
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
    mean_value,
)
from vpretrain.system import distributed

ProbeT = TypeVar("ProbeT", bound=Task)


class Rule(ABC, Generic[ContextT, ProbeT, TaskT]):
    """Maps the values of the choices to a task; it never sees feedback itself.

    The choices are the first control of the rule's tasks. The learner's loss is linear in that
    control, so along a fixed direction (``dot``, ``optimizer_aware``) the values do not depend on
    the task at which they are computed; for other alignments they are first order around it.

    Attributes:
        weighted: whether the first control carries weights, which are then divided by their mean
            over the recent batches (:class:`vpretrain.method.recent.Recent`).
    """

    weighted = False

    @abstractmethod
    def baseline_task(self, context: ContextT) -> TaskT:
        """Returns the unsteered task, in its cheapest form."""

    @abstractmethod
    def probe(self, context: ContextT) -> ProbeT:
        """Returns the baseline task with its control, at which values are computed.

        It also carries everything that the rule reads from the batch.
        """

    @abstractmethod
    def values(self, probe: ProbeT, gradient: Tensor) -> Tensor:
        """Returns the values of the choices from ``dV/d control``.

        They are in units of the loss, may have any shape, and must be linear in the gradient.
        """

    @abstractmethod
    def task(self, probe: ProbeT, values: Tensor) -> TaskT:
        """Returns the task for given values.

        The values are those of :meth:`values` from their mean over the recent batches and in their
        standard deviations, shrunk by their reliability.

        Zeros give the baseline task bit for bit.
        """

    @property
    def bounds(self) -> Bounds:
        """Bounds of the figures in :meth:`metrics`.

        A figure at its bound means that tasks are no longer designed.
        """
        return {"gate": (0.0, 1.0)}

    def metrics(self, probe: ProbeT, task: TaskT, gradient: Tensor) -> Metrics:
        """Returns figures of a task; ``gradient`` is ``dV/d control`` under all feedback.

        ``gate``, for any surface: the L1 distance between the controls of task and probe, divided
        by twice the sum of the probe's; the fraction of probability mass or weight that has moved.
        """
        before, after = probe.controls()[0], task.controls()[0]
        moved, whole = distributed.total(torch.stack([(after - before).abs().sum(), before.sum()]))
        return {"gate": float(moved / (2 * whole))}


@dataclass
class ExactDesigner(Designer[ContextT, TaskT], Generic[ContextT, ProbeT, TaskT]):
    """A designer that computes the exact values of every learner batch, and so needs no network.

    The gain is cross-fitted: tasks made from one half of the feedback are valued by the other half,
    so random feedback shows no gain. These tasks are made as if the values were fully reliable,
    because the agreement of the halves is what the gain measures. With a single feedback batch
    there is no other half, hence no ``gain`` and nothing for the guard to act on.

    Args:
        rule: maps values to a task.
        reliability: shrinks the values.

    Attributes:
        recent: what the values of a batch are compared with: the batches since the last meta step,
            because values under another direction have another scale and another mean.
    """

    rule: Rule[ContextT, ProbeT, TaskT]
    reliability: Reliability
    recent: Recent = field(default_factory=Recent, init=False)
    uses_feedback = True

    @property
    def bounds(self) -> Bounds:
        return self.rule.bounds

    @property
    def gain_rule(self) -> Rule[ContextT, ProbeT, TaskT]:
        """The rule whose tasks the gain is of."""
        return self.rule

    def baseline_task(self, context: ContextT) -> TaskT:
        return self.rule.baseline_task(context)

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        """Returns the rule's task for the values under the latest feedback."""
        probe = self.rule.probe(context)
        return self.shape(probe, value_of(context, probe).gradient[0])

    def shape(self, probe: ProbeT, gradient: Tensor) -> TaskT:
        """Returns the rule's task for a given ``dV/d control``."""
        values = self.rule.values(probe, gradient)
        return self.recent.task(self.rule, probe, values, self.reliability.factor)

    def learn(self, context: ContextT, value_of: ValueFunction[ContextT]) -> Learned[TaskT]:
        """Updates the reliability; also returns this batch's task, as its values are then known."""
        probe = self.rule.probe(context)
        estimates = value_of.each(context, probe)
        gradients = [each.gradient[0] for each in estimates]
        self.reliability.update([self.rule.values(probe, gradient) for gradient in gradients])
        mean = torch.stack(gradients).mean(dim=0)
        # The mean of the values is not the value of the mean, which later tasks follow.
        if not value_of.linear:
            estimates = [value_of(context, probe)]
            mean = estimates[0].gradient[0]
        self.recent = Recent()
        task = self.shape(probe, mean)
        metrics = {
            "value_baseline": mean_value(estimates),
            **self.rule.metrics(probe, task, mean),
            **self.reliability.metrics(),
        }
        if len(gradients) > 1:
            metrics["gain"] = self._gain(probe, gradients)
        return Learned(metrics, task)

    def _gain(self, probe: ProbeT, gradients: Sequence[Tensor]) -> float:
        """Returns the mean gain of tasks made from one half of the feedback, valued by the other;
        0 if the batch holds nothing to compare, such as a single document.
        """
        halves = [torch.stack(tuple(part)).mean(0) for part in (gradients[0::2], gradients[1::2])]
        rule, plain, gains = self.gain_rule, probe.controls()[0], []
        for own, other in (halves, reversed(halves)):
            task = Recent().task(rule, probe, rule.values(probe, own))
            gains.append(float(distributed.total(((task.controls()[0] - plain) * other).sum())))
        return sum(gains) / 2

    def state_dict(self) -> State:
        return {"reliability": self.reliability.state_dict(), "recent": self.recent.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.reliability.load_state_dict(state["reliability"])
        self.recent.load_state_dict(state["recent"])
