"""One optimization step at a fixed point, measured, then undone bit for bit.

Both probes are based on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vpretrain.config.recipe import Recipe
from vpretrain.method import vectors
from vpretrain.method.roles import Gradient, Task, detached
from vpretrain.method.snapshot import Snapshot
from vpretrain.method.step import SteeredStep
from vpretrain.run.build import seed_run
from vpretrain.run.parts import Parts
from vpretrain.system.errors import Fault, user_error

STEP_FRACTION = 1e-3
"""Mean norm of the SGD step on S, relative to the norm of S. On ``demo-language`` (60 draws), r of
``sgd_aligned`` is 0.99999, 0.9993, 0.994 and 0.93 at 1e-4, 1e-3, 3e-3 and 1e-2: at this size the
loss is still linear, and the drop far above rounding.
"""
PILOTS = 8
"""Number of batches, before the draws, that determine the SGD rate."""


class OneStep:
    """A learner at one point of its training.

    Args:
        recipe: of the run.
        parts: of the run; the stream advances, the learner does not.
        step: of the run; its optimizer must have taken a step already.
    """

    def __init__(self, recipe: Recipe, parts: Parts, step: SteeredStep) -> None:
        self.recipe, self.parts, self.learner, self.step = recipe, parts, parts.learner, step
        # A parameter that the loss does not reach has no moments, and is never updated.
        moving = step.optimizer.state
        self.parameters = {
            name: p for name, p in self.learner.model.named_parameters() if p in moving
        }
        aligned = {id(p) for p in self.learner.aligned.values()}
        self.aligned = {name: p for name, p in self.parameters.items() if id(p) in aligned}
        if not self.learner.aligned.keys() & self.aligned.keys():
            message = (
                "feedback that is matched to sources has a direction for each of them, and "
                "one step has one: probe it whole"
            )
            raise user_error("data.feedback.tasks", message, accepted="tasks without `sources`")
        self.size = float(vectors.norm({name: p.detach() for name, p in self.aligned.items()}))
        self.unchanged = Snapshot(self.learner, step.optimizer)

    def task(self, context: Any) -> Task:
        """Returns the task whose gradient is probed: the baseline task."""
        return self.parts.designer.baseline_task(context)

    def seed(self, index: int) -> None:
        """Seeds the random numbers of a draw (dropout)."""
        seed = (self.recipe.seed + 1 + PILOTS + index) % 2**31
        seed_run(self.recipe.model_copy(update={"seed": seed}))

    def next(self, index: int) -> tuple[Any, Gradient]:
        """Returns the stream's next batch, and ``g_pre`` of its task over all parameters."""
        self.seed(index)
        batch = next(self.parts.stream)
        self.seed(index)
        context = self.learner.forward(batch)
        loss = self.learner.loss(context, detached(self.task(context)))
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        return batch, vectors.named(self.parameters, gradients)

    def pilots(self) -> list[Gradient]:
        """Returns ``g_pre`` on S for the pilot batches; sets ``rate``, the SGD rate."""
        gradients = []
        for index in range(PILOTS):
            with self.unchanged():
                gradients.append(self.on_aligned(self.next(-1 - index)[1]))
        self.rate = (
            STEP_FRACTION * self.size * PILOTS / sum(float(vectors.norm(g)) for g in gradients)
        )
        return gradients

    @torch.no_grad()
    def descend(self, gradient: Gradient) -> None:
        """Takes an SGD step."""
        for name, piece in gradient.items():
            self.parameters[name].sub_(piece, alpha=self.rate)

    def on_aligned(self, vector: Gradient) -> Gradient:
        """Restricts a vector over all parameters to S."""
        return {name: vector[name] for name in self.aligned}

    def gradient(self, pieces: Iterable[Tensor]) -> Gradient:
        """Returns the gradient over all parameters of a held-out loss that comes in pieces."""
        return vectors.summed_gradient(pieces, self.parameters)


@torch.no_grad()
def loss_of(pieces: Iterable[Tensor]) -> float:
    """Returns a held-out loss that comes in pieces.

    Raises:
        Fault: it is not finite.
    """
    loss = math.fsum(float(piece) for piece in pieces)
    if not math.isfinite(loss):
        raise Fault(f"the held-out loss is {loss}; lower learner.learning_rate")
    return loss
