"""What can be done to any feedback set's gradients: remember them, or put noise in their place."""

from __future__ import annotations

from typing import Any

import torch

from vpretrain.contracts import Feedback, Gradient


class Remembered:
    """``g_down`` averaged over meta steps, each feedback batch with those of its own past (ours).

    The learner moves little between two meta steps, the rows that are heard change: an average over the past is a larger
    feedback batch at the price of a small one. Batches that share no rows stay independent of each other.

    Args:
        feedback: gives the gradients of the present.
        memory: weight of the past, in [0, 1); the average is over ``1 / (1 - memory)`` meta steps or so, without bias
            towards zero at the beginning.
    """

    def __init__(self, feedback: Feedback, memory: float) -> None:
        self.feedback, self.memory = feedback, memory
        self.sums: list[Gradient] = []
        self.weight = 0.0

    def gradients(self, learner: Any) -> list[Gradient]:
        """The running average of each batch's gradient."""
        present = self.feedback.gradients(learner)
        self.weight = self.memory * self.weight + 1
        past = self.sums or [{name: torch.zeros_like(g) for name, g in each.items()} for each in present]
        self.sums = [
            {name: torch.add(now[name], total, alpha=self.memory) for name, total in held.items()}
            for held, now in zip(past, present, strict=True)
        ]
        return [{name: total / self.weight for name, total in held.items()} for held in self.sums]


class RandomDirection:
    """Gaussian vectors in the place of ``g_down``, parameter by parameter of the same norm (a control of Table 5).

    The real feedback is computed and thrown away but for its size, so that the control costs what the method costs.

    Args:
        feedback: the real one.
        seed: of the random vectors.
        fixed: if True one vector is drawn for the whole run (the harder control: noise that always says the same, so that
            it is trusted fully and steers at least as hard as real feedback), otherwise a fresh one for every batch.
    """

    def __init__(self, feedback: Feedback, seed: int, *, fixed: bool) -> None:
        self.feedback, self.seed, self.fixed = feedback, seed, fixed
        self.generator = torch.Generator().manual_seed(seed)

    def gradients(self, learner: Any) -> list[Gradient]:
        """Random vectors over S, one per feedback batch."""
        return [self._like(real) for real in self.feedback.gradients(learner)]

    def _like(self, real: Gradient) -> Gradient:
        if self.fixed:
            self.generator.manual_seed(self.seed)
        drawn = {}
        for name, piece in real.items():
            noise = torch.randn(piece.shape, generator=self.generator, dtype=torch.float32).to(piece)
            drawn[name] = noise * (piece.norm() / noise.norm())
        return drawn
