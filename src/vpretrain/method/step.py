"""Algorithm 1: one step of steered continued pretraining."""

from __future__ import annotations

import math
from typing import Any, Generic

import torch
from torch import Tensor

from vpretrain.method.accumulation import MicroBatches
from vpretrain.method.guards import Collapse, Guard
from vpretrain.method.meta_step import MetaStep
from vpretrain.method.roles import (
    BatchT,
    ContextT,
    Designer,
    Feedback,
    Learner,
    Metrics,
    State,
    TaskT,
    detached,
)
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system import distributed, sharding
from vpretrain.system.errors import NonFinite
from vpretrain.system.timing import Clock


class SteeredStep(Generic[BatchT, ContextT, TaskT]):
    """One learner step: task, self-supervised loss, AdamW; and a meta step when one is due.

    Args:
        learner: ``theta`` and its self-supervised loss.
        meta: the designer's side: feedback, value, task construction.
        optimizer: the learner's AdamW; it only ever sees gradients of the self-supervised loss.
        clip_norm: bound on the learner's gradient norm.
    """

    def __init__(
        self,
        learner: Learner[BatchT, ContextT, TaskT],
        meta: MetaStep[BatchT, ContextT, TaskT],
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float,
    ) -> None:
        self.learner, self.meta = learner, meta
        self.optimizer, self.clip_norm = optimizer, clip_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.count = 0

    def __call__(
        self, drawn: MicroBatches[BatchT], learning_rate: float, progress: float = 0.0
    ) -> Metrics:
        """Takes one step and returns its metrics alone; see :meth:`take`."""
        return self.take(drawn, learning_rate, progress)[1]

    def take(
        self, drawn: MicroBatches[BatchT], learning_rate: float, progress: float = 0.0
    ) -> tuple[MicroBatches[BatchT], Metrics]:
        """Takes one step, and counts it.

        Args:
            drawn: ``B_u``, unlabeled; the designer's ``draws`` batches for each batch trained on.
                Gradients of the parts are accumulated, and the designer learns from the first part.
            learning_rate: of the learner. At 0 the parameters stay the same bit for bit; the
                optimizer's moments, the designer and its direction still change.
            progress: fraction of the budget that is used, in [0, 1].

        Returns:
            The batches trained on, and the step's metrics.

        Raises:
            NonFinite: the loss, its gradient, a feedback gradient or a value is not finite; learner
                and optimizer are left unchanged.
        """
        due = self.meta.due(self.count)
        batch, metrics = self._step(drawn, learning_rate, progress, meta_due=due)
        self.count += 1
        return batch, metrics

    def uncounted(
        self, drawn: MicroBatches[BatchT], learning_rate: float, progress: float, *, meta_due: bool
    ) -> Metrics:
        """Takes one step without counting it; ``meta_due`` overrides whether a meta step is due."""
        return self._step(drawn, learning_rate, progress, meta_due=meta_due)[1]

    def _step(
        self, drawn: MicroBatches[BatchT], learning_rate: float, progress: float, *, meta_due: bool
    ) -> tuple[MicroBatches[BatchT], Metrics]:
        metrics: Metrics = {}
        timed = Clock()
        losses: list[Tensor] = []
        if meta_due:
            with timed("meta"):
                metrics |= self.meta.update_feedback(learning_rate)
        # Decided before this step's gain is known, which can still change who makes the task.
        uses_selection = self.meta.steers(self.count)
        batch, selection = self._selected(drawn, timed, meta_due=meta_due, used=uses_selection)
        for number, part in enumerate(batch.weighted()):
            with timed("learner"):
                context = self.learner.forward(part.batch)
            value_of = self.meta.value_estimator.on_part(part.fraction_of_batch)
            task = None
            if meta_due and number == 0:
                with timed("meta"):  # step 2: phi moves, theta does not
                    learned, task = self.meta.learn(context, value_of, selection)
                metrics |= learned
            with timed("designer"):
                if task is None or not self.meta.steers(self.count):
                    task = self.meta.task(context, value_of, self.count)
                task = detached(task)
            with timed("learner"):  # step 3, eq. 3: feedback enters through the task alone
                loss = part.fraction * self.learner.loss(context, task)
                loss.backward()
                losses.append(loss.detach())
        with timed("learner"):
            distributed.all_reduce_gradients(self.parameters)
        if meta_due:
            metrics |= self.meta.alignment_metrics()
        with timed("learner"):
            metrics |= self._descend(torch.stack(losses).sum(), learning_rate)
            if learning_rate:  # a settling step moves nothing of the learner
                self.learner.after_step(progress)
        designer = self.meta.designer
        steers = self.meta.steers(self.count) if designer.selector is None else uses_selection
        seconds = {f"seconds_{name}": spent for name, spent in timed.seconds.items()}
        metrics |= seconds | selection
        return batch, metrics | {"steered": float(designer.uses_feedback and steers)}

    def _selected(
        self, drawn: MicroBatches[BatchT], timed: Clock, *, meta_due: bool, used: bool
    ) -> tuple[MicroBatches[BatchT], Metrics]:
        """Returns the batches to train on.

        They are the selector's choice, or the first ones while steering is off.

        At a meta step the choice is made in any case, because the guard needs its gain.
        """
        selector, estimator = self.meta.designer.selector, self.meta.value_estimator
        if selector is None:
            return drawn, {}
        first = MicroBatches(drawn.batches[: len(drawn.batches) // self.meta.designer.draws])
        if not used and not meta_due:
            return first, {}
        with timed("selection"):
            chosen = selector.select(drawn.batches, estimator, meta_step=meta_due, used=used)
        return MicroBatches(chosen.batches) if used else first, dict(chosen.metrics)

    def _descend(self, loss: Tensor, learning_rate: float) -> Metrics:
        """Takes an AdamW step on the accumulated gradients, with their norm clipped."""
        total = float(distributed.total(loss))
        norm = sharding.clip(self.parameters, self.clip_norm)
        if not math.isfinite(norm) or not math.isfinite(total):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFinite(
                f"loss {total}, gradient norm {norm}: not both finite, and the step was not taken; "
                "lower learner.learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": total, "learning_rate": learning_rate, "gradient_norm": norm}

    def state_dict(self) -> State:
        """Returns optimizer state, step count, and the meta step's state."""
        state = {"optimizer": self.optimizer.state_dict(), "count": self.count}
        return state | {"meta": self.meta.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`; the optimizer keeps the settings that it was built with."""
        saved = sharding.laid_out_moments(state["optimizer"], self.parameters)
        # Decay, betas and kernel are the recipe's, which may have changed; the learning rate is set
        # at every step.
        pairs = zip(self.optimizer.param_groups, saved["param_groups"], strict=True)
        groups = [{**built, "params": before["params"]} for built, before in pairs]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        self.count = state["count"]
        self.meta.load_state_dict(state["meta"])


def steered_step(
    learner: Learner[BatchT, ContextT, TaskT],
    designer: Designer[ContextT, TaskT],
    feedback: Feedback[Any],
    value_estimator: ValueEstimator[BatchT, ContextT, TaskT],
    optimizer: torch.optim.Optimizer,
    *,
    period: int,
    clip_norm: float,
    preconditioner_floor: float = 0.1,
    guard_window: int = 0,
) -> SteeredStep[BatchT, ContextT, TaskT]:
    """Assembles Algorithm 1 from the four roles and an AdamW, without a recipe.

    Args:
        learner: ``theta``.
        designer: ``phi``.
        feedback: the labeled feedback set.
        value_estimator: alignment and estimator.
        optimizer: the learner's.
        period: learner steps per designer step.
        clip_norm: bound on the learner's gradient norm.
        preconditioner_floor: of ``P`` (eq. 35).
        guard_window: window of guard and collapse, in meta steps; 0 switches both off.
    """
    meta = MetaStep(
        learner,
        designer,
        feedback,
        value_estimator,
        optimizer,
        period=period,
        preconditioner_floor=preconditioner_floor,
        guard=Guard(guard_window),
        collapse=Collapse(guard_window, designer.bounds),
    )
    return SteeredStep(learner, meta, optimizer, clip_norm=clip_norm)
