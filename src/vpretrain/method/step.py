"""Algorithm 1: one step of steered continued pretraining."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from vpretrain.method import vectors
from vpretrain.method.accumulation import MicroBatches
from vpretrain.method.collapse import Collapse
from vpretrain.method.feedback import feedback_metrics, finite_norm
from vpretrain.method.roles import Designer, Feedback, Learner, detached
from vpretrain.method.value import adam_preconditioner
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system import distributed, sharding
from vpretrain.system.errors import NonFinite


class Stopwatch:
    """Adds the seconds of a block to ``seconds_NAME`` of some metrics."""

    def __init__(self, metrics: dict[str, float]) -> None:
        self.metrics = metrics

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Around the block."""
        started = time.perf_counter()
        yield
        key = f"seconds_{name}"
        self.metrics[key] = self.metrics.get(key, 0.0) + time.perf_counter() - started


class Guard:
    """Do no harm: closes the gate while the mean gain over the last meta steps is negative.

    Args:
        window: how many meta steps the mean is over; 0 leaves the gate open whatever happens. Until
            the window is full the gate is open.
    """

    def __init__(self, window: int) -> None:
        self.gains: deque[float] = deque(maxlen=window)

    def update(self, gain: float) -> None:
        """Takes the gain of one meta step."""
        self.gains.append(gain)

    @property
    def open(self) -> bool:
        """Whether the designer's task may be used."""
        full = self.gains.maxlen and len(self.gains) == self.gains.maxlen
        return not full or sum(self.gains) >= 0


class SteeredStep:
    """Everything one learner step needs; calling it takes the step.

    Args:
        learner: ``theta`` and its self-supervised loss.
        designer: ``phi`` and the task construction ``c_phi``.
        feedback: the only place where feedback labels appear.
        value_estimator: alignment and estimator.
        optimizer: the learner's AdamW; it is only ever given gradients of the self-supervised loss.
        meta_period: ``r``, learner steps per designer step.
        preconditioner_floor: see :func:`vpretrain.method.value.adam_preconditioner`.
        clip_norm: bound on the learner's gradient norm.
        guard: see :class:`Guard`.
        collapse: signs that the designer no longer designs; None looks for none.
        revert: whether the task is the plain one while there are such signs.
    """

    def __init__(
        self,
        learner: Learner,
        designer: Designer,
        feedback: Feedback,
        value_estimator: ValueEstimator,
        optimizer: torch.optim.Optimizer,
        *,
        meta_period: int,
        preconditioner_floor: float,
        clip_norm: float,
        guard: Guard,
        collapse: Collapse | None = None,
        revert: bool = False,
    ) -> None:
        self.learner, self.designer, self.feedback, self.value_estimator = (
            learner,
            designer,
            feedback,
            value_estimator,
        )
        self.optimizer, self.meta_period, self.clip_norm, self.guard = (
            optimizer,
            meta_period,
            clip_norm,
            guard,
        )
        self.preconditioner_floor = preconditioner_floor
        self.collapse, self.revert = collapse or Collapse(0), revert
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.count = 0

    def __call__(self, batch: Any, learning_rate: float, fraction: float = 0.0) -> dict[str, float]:
        """Takes one step on an unlabeled batch and returns its metrics.

        Args:
            batch: ``B_u``, unlabeled, or several of them whose gradients are added up; the first is
                what the designer learns from.
            learning_rate: of the learner; at 0 the parameters stay bit for bit and only the
                optimizer's moments, the designer and its direction move (burn-in).
            fraction: of the budget that is used, in [0, 1].

        Raises:
            NonFinite: the loss, its gradient or what the feedback says is not; learner and
                optimizer were not moved.
        """
        metrics: dict[str, float] = {}
        batches = batch if isinstance(batch, MicroBatches) else MicroBatches((batch,))
        meta_due, steer = self.meta_due, self.steers
        losses: list[torch.Tensor] = []
        clock = Stopwatch(metrics)
        fractions = zip(batches.parts, batches.fractions, batches.fractions_of_batch, strict=True)
        for place, (part, part_fraction, self.value_estimator.fraction) in enumerate(fractions):
            with clock("learner"):
                context = self.learner.forward(part)
            if meta_due and place == 0:
                with clock("meta"):
                    metrics |= self._learn(context, learning_rate)
                steer = self.steers
            with clock("designer"):
                task = (
                    self.designer.make_task(context, self.value_estimator)
                    if steer
                    else self.designer.baseline_task(context)
                )
                task = detached(task)
            with clock("learner"):
                # eq. 3: feedback is in here through the task alone
                part_loss = part_fraction * self.learner.loss(context, task)
                part_loss.backward()
                losses.append(part_loss.detach())
        with clock("learner"):
            distributed.all_reduce_gradients(self.parameters)
        if meta_due:
            metrics |= self._alignment_metrics()
        with clock("learner"):
            loss = float(distributed.total(torch.stack(losses).sum()))
            norm = sharding.clip(self.parameters, self.clip_norm)
            if not math.isfinite(norm) or not math.isfinite(loss):
                self.optimizer.zero_grad(set_to_none=True)
                found = f"loss {loss}, gradient norm {norm}"
                raise NonFinite(
                    f"{found}: not both finite, and the step was not taken; lower "
                    "learner.learning_rate"
                )
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.learner.stepped(fraction)
        self.count += 1
        return metrics | {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "steered": float(steer and self.designer.uses_feedback),
        }

    def _learn(self, context: Any, learning_rate: float) -> dict[str, float]:
        """The meta step: the feedback is heard, the designer moves and the learner does not."""
        downstream = self.feedback.gradients(self.learner)  # eq. 7
        # All processes hear the same rows; that they also round alike is not for every kernel to
        # promise.
        distributed.broadcast([piece for heard in downstream for piece in heard.values()])
        size = finite_norm(downstream)
        self.value_estimator.update(downstream, self._preconditioner(), learning_rate)
        learned = self.designer.learn(
            context, self.value_estimator
        )  # eq. 26, 42: phi moves, theta does not
        self.value_estimator.merge()
        metrics = distributed.averaged(learned)
        if "gain" in metrics:
            self.guard.update(metrics["gain"])
        self.collapse.update(metrics)
        metrics["collapsed"] = float(bool(self.collapse.signs))
        return metrics | feedback_metrics(self.feedback) | {"gradient_norm_downstream": size}

    @property
    def steers(self) -> bool:
        """Whether the designer's task is used, or the plain one in its place."""
        return self.guard.open and not (self.revert and self.collapse.signs)

    @property
    def meta_due(self) -> bool:
        """Whether the next step listens to the feedback."""
        return self.designer.uses_feedback and self.count % self.meta_period == 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "count": self.count,
            "gains": list(self.guard.gains),
            "collapse": self.collapse.state_dict(),
            "appraiser": self.value_estimator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        moments = {
            number: {
                name: sharding.laid_out(held, self.parameters[number]) if held.ndim else held
                for name, held in of_one.items()
            }
            for number, of_one in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.count = state["count"]
        self.guard.gains = deque(state["gains"], maxlen=self.guard.gains.maxlen)
        self.collapse.load_state_dict(state["collapse"])
        self.value_estimator.load_state_dict(state["appraiser"])

    def _preconditioner(self) -> dict[str, torch.Tensor] | None:
        if not self.value_estimator.alignment.preconditioned:
            return None
        return adam_preconditioner(self.optimizer, self.learner.aligned, self.preconditioner_floor)

    def _alignment_metrics(self) -> dict[str, float]:
        """Cosine of the update's gradient on S with the feedback direction; free, since the
        gradient is there anyway.
        """
        pre = {name: p.grad for name, p in self.learner.aligned.items() if p.grad is not None}
        down = {
            name: g
            for name, g in vectors.mean(self.value_estimator.downstream).items()
            if name in pre
        }
        if not pre:
            return {}
        product, size = (
            float(vectors.inner(down, pre)),
            float(vectors.norm(down) * vectors.norm(pre)),
        )
        return {
            "value": product,
            "cosine": product / size if size else 0.0,
            "gradient_norm_aligned": float(vectors.norm(pre)),
        }
