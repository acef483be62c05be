"""Self-supervised training without designer or feedback.

Used to make checkpoints, to warm up heads and to fill an optimizer's moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic

import torch
from torch import nn

from vpretrain.method.roles import BatchT, ContextT, Learner, TaskT, detached
from vpretrain.system.errors import Fault


@dataclass(frozen=True)
class Pretraining(Generic[BatchT, ContextT, TaskT]):
    """Configuration of training without steering.

    Args:
        learner: in the mode it is to train in.
        baseline_task: makes its task without steering.
        optimizer: over the parameters to train; others are not updated.
        clip_norm: bound on the gradient's norm; ``inf`` for none.
        learning_rate_key: the recipe key named in the error for a loss that is not finite.
    """

    learner: Learner[BatchT, ContextT, TaskT]
    baseline_task: Callable[[ContextT], TaskT]
    optimizer: torch.optim.Optimizer
    clip_norm: float
    learning_rate_key: str


def pretrain(
    how: Pretraining[BatchT, ContextT, TaskT],
    batches: Iterator[BatchT],
    schedule: Iterable[tuple[float, float]],
) -> Iterator[float]:
    """Takes one step per item of the schedule, and yields its loss afterwards.

    Args:
        how: learner, task and optimizer.
        batches: unlabeled.
        schedule: ``(learning rate, progress in [0, 1])`` of every step.

    Raises:
        Fault: a loss is not finite.
    """
    learner, optimizer = how.learner, how.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step, (rate, progress) in enumerate(schedule):
        for group in optimizer.param_groups:
            group["lr"] = rate
        context = learner.forward(next(batches))
        loss = learner.loss(context, detached(how.baseline_task(context)))
        figure = float(loss.detach())
        if not math.isfinite(figure):
            raise Fault(f"the loss is {figure} at step {step}; lower {how.learning_rate_key}")
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, how.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if rate:
            learner.after_step(progress)
        yield figure
