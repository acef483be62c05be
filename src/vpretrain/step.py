"""Algorithm 1: one step of steered continued pretraining."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from vpretrain import vectors
from vpretrain.appraisal import Appraiser
from vpretrain.contracts import Designer, Feedback, Learner, detached
from vpretrain.errors import NonFinite
from vpretrain.feedback import metrics_of
from vpretrain.value import adam_preconditioner


class Guard:
    """Do no harm: closes the gate while the mean gain over the last meta steps is negative.

    Args:
        window: how many meta steps the mean is over; 0 leaves the gate open whatever happens. Until the window is full
            the gate is open.
    """

    def __init__(self, window: int) -> None:
        self.gains: deque[float] = deque(maxlen=window)

    def hear(self, gain: float) -> None:
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
        appraiser: alignment and estimator.
        optimizer: the learner's AdamW; it is only ever given gradients of the self-supervised loss.
        meta_period: ``r``, learner steps per designer step.
        preconditioner_floor: see :func:`vpretrain.value.adam_preconditioner`.
        clip_norm: bound on the learner's gradient norm.
        guard: see :class:`Guard`.
    """

    def __init__(
        self, learner: Learner, designer: Designer, feedback: Feedback, appraiser: Appraiser,
        optimizer: torch.optim.Optimizer, *, meta_period: int, preconditioner_floor: float, clip_norm: float, guard: Guard,
    ) -> None:  # fmt: skip
        self.learner, self.designer, self.feedback, self.appraiser = learner, designer, feedback, appraiser
        self.optimizer, self.meta_period, self.clip_norm, self.guard = optimizer, meta_period, clip_norm, guard
        self.preconditioner_floor = preconditioner_floor
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.count = 0

    def __call__(self, batch: Any, learning_rate: float, share: float = 0.0) -> dict[str, float]:
        """Takes one step on an unlabeled batch and returns its metrics.

        Args:
            batch: ``B_u``, unlabeled.
            learning_rate: of the learner; at 0 the parameters stay bit for bit and only the optimizer's moments, the
                designer and its direction move (burn-in).
            share: of the budget that is used, in [0, 1].

        Raises:
            NonFinite: the loss, its gradient or what the feedback says is not; learner and optimizer were not moved.
        """
        metrics: dict[str, float] = {}
        started = time.perf_counter()
        context = self.learner.observe(batch)
        seconds_forward = time.perf_counter() - started

        if self.meta_due:
            started = time.perf_counter()
            downstream = self.feedback.gradients(self.learner)  # eq. 7
            size = float(vectors.norm(vectors.mean(downstream)))
            if not math.isfinite(size):
                raise NonFinite(f"the feedback gradient's norm is {size}, and the step was not taken")
            self.appraiser.hear(downstream, self._preconditioner(), learning_rate)
            metrics |= self.designer.learn(context, self.appraiser)  # eq. 26, 42: phi moves, theta does not
            if "gain" in metrics:
                self.guard.hear(metrics["gain"])
            metrics |= metrics_of(self.feedback)
            metrics["gradient_norm_downstream"] = size
            metrics["seconds_meta"] = time.perf_counter() - started

        started = time.perf_counter()
        steer = self.guard.open
        task = self.designer.construct(context, self.appraiser) if steer else self.designer.plain(context)
        task = detached(task)
        metrics["seconds_designer"] = time.perf_counter() - started

        started = time.perf_counter()
        loss = self.learner.loss(context, task)  # eq. 3: feedback is in here through the task alone
        loss.backward()
        if "seconds_meta" in metrics:
            metrics |= self._alignment_metrics()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        if not torch.isfinite(norm) or not torch.isfinite(loss):
            self.optimizer.zero_grad(set_to_none=True)
            found = f"loss {float(loss.detach())}, gradient norm {float(norm)}"
            raise NonFinite(f"{found}: not both are finite, and the step was not taken; lower learner.learning_rate")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.learner.stepped(share)
        self.count += 1
        metrics["seconds_learner"] = seconds_forward + time.perf_counter() - started
        return metrics | {
            "loss": float(loss.detach()),
            "learning_rate": learning_rate,
            "gradient_norm": float(norm),
            "steered": float(steer and self.designer.listens),
        }

    @property
    def meta_due(self) -> bool:
        """Whether the next step listens to the feedback."""
        return self.designer.listens and self.count % self.meta_period == 0

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, count, guard, and the direction that was heard last."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "count": self.count,
            "gains": list(self.guard.gains),
            "appraiser": self.appraiser.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.count = state["count"]
        self.guard.gains = deque(state["gains"], maxlen=self.guard.gains.maxlen)
        self.appraiser.load_state_dict(state["appraiser"])

    def _preconditioner(self) -> dict[str, torch.Tensor] | None:
        if not self.appraiser.alignment.preconditioned:
            return None
        return adam_preconditioner(self.optimizer, self.learner.aligned, self.preconditioner_floor)

    def _alignment_metrics(self) -> dict[str, float]:
        """Cosine of the update's gradient on S with the feedback direction; free, since the gradient is there anyway."""
        pre = {name: p.grad for name, p in self.learner.aligned.items() if p.grad is not None}
        down = {name: g for name, g in vectors.mean(self.appraiser.downstream).items() if name in pre}
        if not pre:
            return {}
        product, size = float(vectors.inner(down, pre)), float(vectors.norm(down) * vectors.norm(pre))
        return {
            "value": product,
            "cosine": product / size if size else 0.0,
            "gradient_norm_aligned": float(vectors.norm(pre)),
        }
