"""Algorithm 1 inside another trainer's loop, which runs backward passes and optimizes.

It works on one part of a batch at a time.

With several processes a part is this process's shard of a micro-batch. Its sums and means are over
all processes, as in the core (:mod:`vpretrain.system.distributed`), and all processes must reach
every part together. The host reduces the gradients.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.language.data.batch import TokenBatch
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.layout import carries_state
from vpretrain.language.learner.predictions import Predictions, WholeLogits, chunked_head
from vpretrain.language.learner.targets import SoftTargets
from vpretrain.method.meta_step import MetaStep
from vpretrain.method.roles import Metrics, State, ValueFunction, detached
from vpretrain.system import distributed
from vpretrain.system.errors import NonFinite, UserError, user_error

log = logging.getLogger(__name__)

FAULTS = 3
"""Number of consecutive parts that may go unsteered because of a number that is not finite, or of a
checker.
"""


class HostedLearner(CausalLearner):
    """A causal learner whose training pass goes through the host's wrapper around the model.

    Data parallelism averages gradients, and Accelerate casts, only in a call of the wrapper. Values
    are computed without it, on the model's parts.

    Args:
        model: the ``transformers`` model itself. One whose layers carry a state along the row is
            run on rows of one document each.
        aligned: S.
        autocast: see :class:`~vpretrain.language.learner.causal.CausalLearner`.
    """

    def __init__(
        self, model: Any, aligned: dict[str, nn.Parameter], *, autocast: torch.dtype | None
    ) -> None:
        try:
            super().__init__(model, aligned, autocast=autocast, packed=not carries_state(model))
        except UserError:  # unless packing is all that is wrong, it is raised again
            super().__init__(model, aligned, autocast=autocast, packed=False)
        self.wrapped: Any = model

    def forward(self, batch: TokenBatch) -> Context:
        """Runs one forward pass of the wrapped model.

        As in :class:`CausalLearner`, prompts and padding are never projected. A large vocabulary is
        processed in chunks; the model's own head is then called with an empty input.

        Raises:
            UserError: rows are packed, and the model lets their documents see each other.
        """
        batch = batch.to(self.device)
        positions: dict[str, Tensor] = {"position_ids": batch.position_ids} if self.packed else {}
        if not self.packed and bool((batch.position_ids[:, 1:] == 0).any()):
            raise user_error(
                "data_collator",
                f"{type(self.model).__name__} lets a token see other documents of its packed row; "
                "give each a row of its own",
                value="several documents in a row",
                accepted="one document a row (packing=False)",
            )
        row, at = batch.predicted.nonzero(as_tuple=True)
        labels = batch.input_ids[row, at]
        head = chunked_head(self.anatomy, len(labels))
        hidden: list[Tensor] = []

        def predicted_alone(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(args[0])
            return (args[0][row, at - 1] if head is None else args[0][:0, 0],)

        hook = self.anatomy.head.register_forward_pre_hook(predicted_alone)
        try:
            with self.suffix.trace() as trace, self._lookup_for(head) as shared:
                logits = self.wrapped(
                    input_ids=batch.input_ids, use_cache=False, **positions
                ).logits
        finally:
            hook.remove()
        where = (row, at - 1)
        predictions: Predictions = WholeLogits(logits, labels)
        if head is not None:
            with self.computing():
                weight = None if shared is None else shared.weight
                predictions = HeadPass(hidden[0][where], head, labels, weight=weight)
        return Context(batch, where, labels, hidden[0], predictions, trace)


class HostedStep:
    """The designer's side of a learner step that another trainer runs.

    The host runs the backward pass, clips and optimizes.

    Args:
        learner: the host's model as a learner.
        meta: the designer's side; its optimizer is the host's.

    Attributes:
        metrics: of the latest meta step.
    """

    def __init__(
        self, learner: HostedLearner, meta: MetaStep[TokenBatch, Context, SoftTargets]
    ) -> None:
        self.learner, self.meta = learner, meta
        self.metrics: Metrics = {}
        self.step = 0
        self._begun = self._prepared = self._due = self._learned = False
        self._faults = 0

    @property
    def steers(self) -> bool:
        """Whether this step uses the designer's task rather than the baseline task."""
        return self.meta.steers(self.step)

    def part_loss(self, part: TokenBatch, fraction: float, *, step: int) -> Tensor:
        """Returns the loss of a part of the step's batch, a scalar with its graph to the learner.

        If some process has nothing to predict, the part is not steered on any process, and a due
        meta step is postponed to the next part.

        Args:
            part: unlabeled; the designer learns from the first part of a step.
            fraction: weight of the part's mean in this process's loss of the step.
            step: of the host, from 0; the same for all parts of a step.
        """
        context = self.learner.forward(part)
        if not self._prepared and self.meta.designer.uses_feedback:
            self.meta.feedback.prepare(self.learner)  # before the learner is steered
            self._due = step > self.meta.start  # in a plain checkpoint, between two meta steps
        self._prepared = True
        if not self._begun or step != self.step:
            self._begun, self.step = True, step
            self._due, self._learned = self._due or self.meta.due(step), False
        count = len(context.labels)
        everywhere, lacking = distributed.total(
            torch.tensor([count, count == 0], dtype=torch.float64)
        ).tolist()
        if not count:
            return context.logits.sum() * 0.0  # gives every parameter a gradient, as DDP requires
        if lacking:
            task = self.meta.designer.baseline_task(context)
            return fraction * self.learner.loss(context, detached(task))
        value_of = self.meta.value_estimator.on_part(count / everywhere)
        try:
            task = self._task(context, value_of)
            self._faults = 0
        except NonFinite as fault:  # on all processes, and so is what follows
            self._faults += 1
            if self._faults > FAULTS:
                raise
            tried = "meta step" if self._due else "steering"
            log.warning("no %s on this batch, the next one tries again: %s", tried, fault)
            task = self.meta.designer.baseline_task(context)
        return fraction * self.learner.loss(context, detached(task))

    def _task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        """Returns the task of a part, after the meta step if one is due.

        Raises:
            NonFinite: a gradient of the feedback or a value; a due meta step stays due.
        """
        task = None
        if self._due:
            rate = float(self.meta.optimizer.param_groups[0]["lr"])
            self.metrics, task = self.meta(context, value_of, rate)
            self._due, self._learned = False, True
        if task is None or not self.steers:
            task = self.meta.task(context, value_of, self.step)
        return task

    def after_backward(self) -> None:
        """Must be called after the last backward pass of a step, before the gradient is clipped."""
        if self._learned:
            self.metrics |= self.meta.alignment_metrics()
        # The number of the step does not tell: a host that trains again begins at the same one.
        self._begun = False

    def state_dict(self) -> State:
        """Returns the designer's side, with a pending meta step; the host saves the optimizer."""
        return {
            "step": self.step,
            "meta": self.meta.state_dict(),
            "due": self._due,
            "faults": self._faults,
            "metrics": dict(self.metrics),
        }

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        self.step, self._prepared = state["step"], True
        self.meta.load_state_dict(state["meta"])
        self._due, self._faults, self.metrics = state["due"], state["faults"], state["metrics"]
