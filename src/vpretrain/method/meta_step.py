"""Algorithm 1, step 2: every ``r`` learner steps the feedback is asked and the designer moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Generic

import torch

from vpretrain.method import vectors
from vpretrain.method.accumulation import MicroBatches
from vpretrain.method.feedback import finite_norm
from vpretrain.method.guards import Collapse, Guard
from vpretrain.method.roles import (
    BatchT,
    ContextT,
    Designer,
    Feedback,
    Learner,
    Metrics,
    State,
    TaskT,
    ValueFunction,
)
from vpretrain.method.value import adam_preconditioner
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system import distributed


class MetaStep(Generic[BatchT, ContextT, TaskT]):
    """The designer's side of a step: when it learns, from what, and whether its tasks are used.

    Args:
        learner: ``theta``; never moved here.
        designer: ``phi`` and the task construction ``c_phi``.
        feedback: the only place where feedback labels appear.
        value_estimator: alignment and estimator.
        optimizer: the learner's; ``P`` is read from its second moments (eq. 35).
        period: ``r``, learner steps per designer step.
        start: the learner step at which the designer's updates begin; before it the task is the
            baseline's (v1 4.2: delayed against an early dip).
        preconditioner_floor: see :func:`vpretrain.method.value.adam_preconditioner`.
        guard: see :class:`vpretrain.method.guards.Guard`.
        collapse: signs that the designer no longer designs.
        revert: whether the task is the baseline's while there are such signs.
        batches: unlabeled batches of the designer's own, one a meta step (the paper's separate meta
            batch, G.2); None: it learns from the learner's batch.
    """

    def __init__(
        self,
        learner: Learner[BatchT, ContextT, TaskT],
        designer: Designer[ContextT, TaskT],
        feedback: Feedback[Any],
        value_estimator: ValueEstimator[BatchT, ContextT, TaskT],
        optimizer: torch.optim.Optimizer,
        *,
        period: int,
        start: int = 0,
        preconditioner_floor: float,
        guard: Guard,
        collapse: Collapse,
        revert: bool = False,
        batches: Iterator[BatchT] | None = None,
    ) -> None:
        self.learner, self.designer, self.feedback = learner, designer, feedback
        self.value_estimator, self.optimizer = value_estimator, optimizer
        self.period, self.start, self.preconditioner_floor = period, start, preconditioner_floor
        self.guard, self.collapse, self.revert = guard, collapse, revert
        self.batches = batches

    def due(self, step: int) -> bool:
        """Whether the designer learns at this learner step, counted from 0."""
        since = step - self.start
        return self.designer.uses_feedback and since >= 0 and since % self.period == 0

    def steers(self, step: int) -> bool:
        """Whether the designer's task is used, or the baseline's in its place."""
        begun = step >= self.start or not self.designer.uses_feedback
        return begun and self.guard.allows and not (self.revert and self.collapse.signs)

    def task(self, context: ContextT, value_of: ValueFunction[ContextT], step: int) -> TaskT:
        """``c_phi``: the task that the learner is given at this step, not yet detached."""
        if self.steers(step):
            return self.designer.make_task(context, value_of)
        return self.designer.baseline_task(context)

    def __call__(
        self, context: ContextT, value_of: ValueFunction[ContextT], learning_rate: float
    ) -> tuple[Metrics, TaskT | None]:
        """One update of the designer.

        Args:
            context: of the learner's batch.
            value_of: values tasks on it.
            learning_rate: of the learner's step (``lower_bound`` only).

        Returns:
            Metrics, and the next task of this context where the update has just computed it.

        Raises:
            NonFinite: what the feedback says is not finite.
        """
        asked = self.ask(learning_rate)
        metrics, task = self.learn(context, value_of)
        return metrics | asked, task

    def ask(self, learning_rate: float) -> Metrics:
        """Takes the feedback's gradients: the first half of an update.

        Args:
            learning_rate: of the learner's step (``lower_bound`` only).

        Raises:
            NonFinite: what the feedback says is not finite.
        """
        gradients = self.feedback.gradients(self.learner)  # eq. 7
        # All processes use the same rows; that they also round alike no kernel promises.
        distributed.broadcast([piece for each in gradients for piece in each.values()])
        size = finite_norm(gradients)
        self.value_estimator.update(gradients, self.preconditioner(), learning_rate)
        return self.feedback.metrics() | {"gradient_norm_downstream": size}

    def learn(
        self,
        context: ContextT,
        value_of: ValueFunction[ContextT],
        selection: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[Metrics, TaskT | None]:
        """The designer moves along what the feedback has just said: the second half.

        Args:
            context: of the learner's batch.
            value_of: values tasks on it.
            selection: figures of the choice that this batch comes from; guard and collapse watch
                them beside the designer's.
        """
        if self.batches is None:
            learned = self.designer.learn(context, value_of)  # eq. 26, 42: phi moves, theta not
            task = learned.task
        else:
            [part] = MicroBatches((next(self.batches),)).weighted()
            with torch.no_grad():
                own = self.learner.forward(part.batch)
            value_of = self.value_estimator.on_part(part.fraction_of_batch)
            learned, task = self.designer.learn(own, value_of), None
        self.value_estimator.keep_mean()
        metrics = {**selection, **distributed.averaged(learned.metrics)}
        if "gain" in metrics:
            self.guard.update(metrics["gain"])
        self.collapse.update(metrics)
        metrics["collapsed"] = float(bool(self.collapse.signs))
        return metrics | self.value_estimator.estimator.metrics(), task

    def preconditioner(self) -> dict[str, torch.Tensor] | None:
        """``P`` over S; None where the alignment does not ask for it, or before the first step."""
        if not self.value_estimator.alignment.preconditioned:
            return None
        floor = self.preconditioner_floor
        return adam_preconditioner(self.optimizer, self.learner.aligned, floor)

    def alignment_metrics(self) -> Metrics:
        """How the update's gradient on S, now in ``.grad``, lies to the feedback's direction.

        Nothing where S is there once a domain (eq. 44-46): all copies share one gradient.
        """
        if len({id(p) for p in self.learner.aligned.values()}) < len(self.learner.aligned):
            return {}
        pre = {name: p.grad for name, p in self.learner.aligned.items() if p.grad is not None}
        mean = vectors.mean(self.value_estimator.feedback_gradients)
        down = {name: piece for name, piece in mean.items() if name in pre}
        if not pre:
            return {}
        product = float(vectors.inner(down, pre))
        size = float(vectors.norm(down) * vectors.norm(pre))
        return {
            "value": product,
            "cosine": product / size if size else 0.0,
            "gradient_norm_aligned": float(vectors.norm(pre)),
        }

    def state_dict(self) -> State:
        """Guard, collapse, and the direction of the latest meta step."""
        return {
            "guard": self.guard.state_dict(),
            "collapse": self.collapse.state_dict(),
            "value_estimator": self.value_estimator.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        self.guard.load_state_dict(state["guard"])
        self.collapse.load_state_dict(state["collapse"])
        self.value_estimator.load_state_dict(state["value_estimator"])
