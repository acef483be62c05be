"""Algorithm 1 inside a loop that is not ours: one part of a batch at a time, optimizer and clipping
left to the host.

On several processes a part is this one's share of a micro-batch; what is a sum or a mean over it is
one over all of them, as in the core (:mod:`vpretrain.system.distributed`), and all come to every
part together. Gradients are left to the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.integrations.steering import Steering
from vpretrain.language.data.batch import TokenBatch
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.learner.predictions import WholeLogits
from vpretrain.method.collapse import Collapse
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.roles import Designer, Feedback, detached
from vpretrain.method.step import Guard, SteeredStep
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system import distributed


class HostedLearner(CausalLearner):
    """A causal learner whose training pass goes through whatever the host has wrapped around the
    model.

    Data parallelism averages gradients, and Accelerate casts, only in a call of the wrapper.
    Everything that is valued runs without it, on the model's parts.

    Args:
        model: the ``transformers`` model itself.
        aligned: S.
        autocast: see :class:`~vpretrain.language.learner.causal.CausalLearner`.
    """

    def __init__(
        self, model: Any, aligned: dict[str, nn.Parameter], *, autocast: torch.dtype | None
    ) -> None:
        super().__init__(model, aligned, autocast=autocast)
        self.wrapped: Any = model

    def forward(self, batch: TokenBatch) -> Context:
        """One forward pass of the wrapped model; as in the plain learner, prompts and padding are
        never projected.
        """
        batch = batch.to(self.device)
        row, at = batch.predicted.nonzero(as_tuple=True)
        hidden: list[Tensor] = []

        def predicted_alone(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(args[0])
            return (args[0][row, at - 1],)

        hook = self.anatomy.head.register_forward_pre_hook(predicted_alone)
        try:
            with self.suffix.trace() as trace:
                logits = self.wrapped(
                    input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
                ).logits
        finally:
            hook.remove()
        labels = batch.input_ids[row, at]
        return Context(batch, (row, at - 1), labels, hidden[0], WholeLogits(logits, labels), trace)


class HostedStep(SteeredStep):
    """One learner step whose parts the host sends back through the model, and whose gradient it
    clips and applies.

    Args:
        learner, designer, feedback: the parts.
        optimizer: the host's, as it steps: the preconditioner and the learning rate are read from
            it.
        steering: alignment, estimator, meta period, guard.

    Attributes:
        metrics: of the latest meta step.
    """

    def __init__(
        self,
        learner: HostedLearner,
        designer: Designer,
        feedback: Feedback,
        optimizer: Any,
        steering: Steering,
    ) -> None:
        super().__init__(
            learner,
            designer,
            feedback,
            ValueEstimator(
                learner,
                Alignment(steering.alignment, steering.smoothness),
                ESTIMATORS[steering.estimator],
            ),
            optimizer,
            meta_period=steering.meta_period,
            preconditioner_floor=steering.preconditioner_floor,
            clip_norm=torch.inf,
            guard=Guard(steering.guard_window),
            collapse=Collapse(steering.guard_window, getattr(designer, "bounds", None)),
            revert=steering.on_collapse == "revert",
        )
        self.metrics: dict[str, float] = {}
        self._at: int | None = None
        self._due = self._heard = False

    def part_loss(self, part: TokenBatch, fraction: float, *, step: int) -> Tensor:
        """The loss of a part of the step's batch, a scalar with its graph to the learner.

        Where some process has nothing to predict, the part is not steered on any, and the meta step
        waits for the next.

        Args:
            part: unlabeled; the first of a step is what the designer learns from.
            fraction: what the part's mean counts in this process's loss of the step.
            step: of the host, from 0; parts of one step have the same.
        """
        context = self.learner.forward(part)
        if step != self._at:
            self._at = self.count = step
            self._due, self._heard = self._due or self.meta_due, False
        count = len(context.labels)
        everywhere, lacking = distributed.total(
            torch.tensor([count, count == 0], dtype=torch.float64)
        ).tolist()
        if not count:
            return context.logits.sum() * 0.0  # every parameter has its gradient
        if lacking:
            return fraction * self.learner.loss(
                context, detached(self.designer.baseline_task(context))
            )
        self.value_estimator.fraction = count / everywhere
        if self._due:
            self._due, self._heard = False, True
            self.metrics = self._learn(context, float(self.optimizer.param_groups[0]["lr"]))
        task = (
            self.designer.make_task(context, self.value_estimator)
            if self.steers
            else self.designer.baseline_task(context)
        )
        return fraction * self.learner.loss(context, detached(task))

    def backed(self) -> None:
        """After the last backward pass of a step, before the gradient is clipped."""
        if self._heard:
            self.metrics |= self._alignment_metrics()

    def state_dict(self) -> dict[str, Any]:
        return {name: held for name, held in super().state_dict().items() if name != "optimizer"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({**state, "optimizer": self.optimizer.state_dict()})
