"""The designer that needs no network: it asks what the choices of every batch are worth, and
follows a rule (ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vpretrain.method.collapse import Bounds
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import ValueFunction
from vpretrain.method.rules import standardised
from vpretrain.system import distributed


class Rule(Protocol):
    """A way from what choices are worth to the task that is set; it never hears feedback itself.

    The choices are the first control of its tasks, and the learner's loss is linear in it, so that
    values do not depend on the task that they are taken at. Subclass it for :meth:`metrics`.
    """

    def baseline_task(self, context: Any) -> Any:
        """The task without steering, as cheap as there is one."""
        ...

    def probe(self, context: Any) -> Any:
        """The same with the control, where values are taken; it carries whatever else the rule
        reads of the batch.
        """
        ...

    def values(self, probe: Any, gradient: Tensor) -> Tensor:
        """What the choices are worth, in the units of the loss and in any shape, from
        ``dV/d control``; linear in it.
        """
        ...

    def task(self, probe: Any, values: Tensor) -> Any:
        """The task for :meth:`values` in standard deviations over the batch, shrunk by their
        reliability.

        Zeros give the plain task bit for bit.
        """
        ...

    @property
    def bounds(self) -> Bounds:
        """Where figures of :meth:`metrics` stand when the tasks are no longer designed."""
        return {"gate": (0.0, 1.0)}

    def metrics(self, probe: Any, task: Any, gradient: Tensor) -> dict[str, float]:
        """How a task of this rule looks; ``gradient`` is the ``dV/d control`` that all of the
        feedback gives.

        Of any surface: ``gate``, half of what moved as a share of all: mass that has left where it
        was, or weight.
        """
        (before, *_), (after, *_) = probe.controls(), task.controls()
        moved, whole = distributed.total(torch.stack([(after - before).abs().sum(), before.sum()]))
        return {"gate": float(moved / (2 * whole))}


@dataclass
class ExactDesigner:
    """A designer that hears the exact values of every learner batch, and so needs no network
    (ours).

    Gain is cross-fitted: tasks made from one half of the feedback are valued by the other, which
    random feedback cannot fool.

    Args:
        rule: what follows from the values.
        reliability: how values shrink.
    """

    rule: Rule
    reliability: Reliability
    _heard: tuple[Any, Any, Tensor] | None = field(default=None, init=False, repr=False)
    """Of the batch that was just learned from: context, probe, and ``dV/d control``."""
    uses_feedback = True

    @property
    def bounds(self) -> Bounds:
        return self.rule.bounds

    def baseline_task(self, context: Any) -> Any:
        """The task without steering; lets go of what was heard."""
        self._heard = None
        return self.rule.baseline_task(context)

    def make_task(self, context: Any, value_of: ValueFunction) -> Any:
        """The task that the values under the latest feedback ask for."""
        heard, self._heard = self._heard, None
        if heard is None or heard[0] is not context:
            probe = self.rule.probe(context)
            heard = context, probe, value_of(context, probe).gradient[0]
        return self.shape(*heard[1:])

    def shape(self, probe: Any, gradient: Tensor) -> Any:
        """The task that ``dV/d control`` asks for."""
        values = self.rule.values(probe, gradient)
        return self.rule.task(probe, self.reliability.factor * standardised(values))

    def learn(self, context: Any, value_of: ValueFunction) -> dict[str, float]:
        """Updates the reliability; returns how good the tasks are that it would make."""
        probe = self.rule.probe(context)
        gradients = [each.gradient[0] for each in value_of.each(context, probe)]
        self.reliability.update([self.rule.values(probe, gradient) for gradient in gradients])
        mean = torch.stack(gradients).mean(dim=0)
        self._heard = context, probe, mean  # construct needs just these
        halves = [
            torch.stack(part).mean(dim=0)
            for part in (gradients[0::2], gradients[1::2] or gradients)
        ]
        plain = probe.controls()[0]
        tasks = [self.shape(probe, half) for half in halves]
        gains = [
            float(distributed.total(((task.controls()[0] - plain) * half).sum()))
            for task, half in zip(tasks, reversed(halves), strict=True)
        ]
        return {
            "gain": sum(gains) / 2,
            "value_baseline": float(distributed.total((plain * sum(halves)).sum()) / 2),
            **self.rule.metrics(probe, tasks[0], mean),
            **self.reliability.metrics(),
        }

    def state_dict(self) -> dict[str, Any]:
        return self.reliability.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reliability.load_state_dict(dict(state))
