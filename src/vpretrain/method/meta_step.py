"""Algorithm 1, step 2: compute feedback gradients and update the designer, every ``r`` steps."""

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
from vpretrain.system.contexts import evaluating


class MetaStep(Generic[BatchT, ContextT, TaskT]):
    """The designer's side of a step: when it learns, from what, and whether its tasks are used.

    Args:
        learner: ``theta``; never updated here.
        designer: ``phi`` and the task construction ``c_phi``.
        feedback: the only place where feedback labels appear.
        value_estimator: alignment and estimator.
        optimizer: the learner's; ``P`` is read from its second moments (eq. 35).
        period: ``r``, learner steps per designer step.
        start: the learner step at which the designer's updates begin. Until then the baseline task
            is used (v1 4.2: delayed to avoid an early dip).
        preconditioner_floor: see :func:`vpretrain.method.value.adam_preconditioner`.
        guard: see :class:`vpretrain.method.guards.Guard`.
        collapse: see :class:`vpretrain.method.guards.Collapse`.
        revert: whether the baseline task is used while there are signs of collapse.
        batches: separate unlabeled batches for the designer, one per meta step (the paper's meta
            SSL batch, G.2); None: it learns from the learner's batch.
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
        """Returns whether the designer learns at this learner step, counted from 0."""
        since = step - self.start
        return self.designer.uses_feedback and since >= 0 and since % self.period == 0

    def steers(self, step: int) -> bool:
        """Returns whether this step uses the designer's task rather than the baseline task."""
        begun = step >= self.start or not self.designer.uses_feedback
        return begun and self.guard.allows and not (self.revert and self.collapse.signs)

    def task(self, context: ContextT, value_of: ValueFunction[ContextT], step: int) -> TaskT:
        """Returns ``c_phi``: the learner's task at this step, not yet detached."""
        if self.steers(step):
            return self.designer.make_task(context, value_of)
        return self.designer.baseline_task(context)

    def __call__(
        self, context: ContextT, value_of: ValueFunction[ContextT], learning_rate: float
    ) -> tuple[Metrics, TaskT | None]:
        """Takes one update of the designer.

        Args:
            context: of the learner's batch.
            value_of: values tasks on that context.
            learning_rate: of the learner's step (``lower_bound`` only).

        Returns:
            The metrics, and the next task of this context if the update has computed it.

        Raises:
            NonFinite: a feedback gradient or a value is not finite.
        """
        feedback_metrics = self.update_feedback(learning_rate)
        metrics, task = self.learn(context, value_of)
        return metrics | feedback_metrics, task

    def update_feedback(self, learning_rate: float) -> Metrics:
        """Computes the feedback gradients: the first half of an update.

        Args:
            learning_rate: of the learner's step (``lower_bound`` only).

        Raises:
            NonFinite: a feedback gradient is not finite.
        """
        gradients = self.feedback.gradients(self.learner)  # eq. 7
        # All processes use the same rows, but kernels need not round alike on all of them.
        distributed.broadcast([piece for gradient in gradients for piece in gradient.values()])
        norm = finite_norm(gradients)
        self.value_estimator.update(gradients, self.preconditioner(), learning_rate)
        return self.feedback.metrics() | {"gradient_norm_downstream": norm}

    def learn(
        self,
        context: ContextT,
        value_of: ValueFunction[ContextT],
        selection: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[Metrics, TaskT | None]:
        """Updates the designer under the latest feedback gradients: the second half of an update.

        Args:
            context: of the learner's batch.
            value_of: values tasks on that context.
            selection: metrics of the selection that gave this batch; guard and collapse watch them
                along with the designer's.

        Returns:
            The metrics, and the next task of this context if the update has computed it.

        Raises:
            NonFinite: a value, or the designer's gradient, is not finite.
        """
        if self.batches is None:
            learned = self.designer.learn(context, value_of)  # eq. 26, 42: phi moves, theta not
            task = learned.task
        else:
            [part] = MicroBatches((next(self.batches),)).weighted()
            value_of = self.value_estimator.on_part(part.fraction_of_batch)
            # Values are without dropout, and its random numbers belong to the learner's passes.
            with evaluating(self.learner.model):
                with torch.no_grad():
                    meta_context = self.learner.forward(part.batch)
                learned, task = self.designer.learn(meta_context, value_of), None
        self.value_estimator.keep_mean()
        metrics = {**selection, **distributed.averaged(learned.metrics)}
        if "gain" in metrics:
            self.guard.update(metrics["gain"])
        self.collapse.update(metrics)
        metrics["collapsed"] = float(bool(self.collapse.signs))
        return metrics | self.value_estimator.estimator.metrics(), task

    def preconditioner(self) -> dict[str, torch.Tensor] | None:
        """Returns ``P`` over S; None if the alignment does not use it, or before the first step."""
        if not self.value_estimator.alignment.preconditioned:
            return None
        floor = self.preconditioner_floor
        return adam_preconditioner(self.optimizer, self.learner.aligned, floor)

    def alignment_metrics(self) -> Metrics:
        """Compares the learner's gradient on S (in ``.grad``) with the mean feedback gradient.

        Empty if S is listed once per domain (eq. 44-46), because all copies share one gradient.
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
        """Returns the state of guard, collapse and value estimator."""
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
