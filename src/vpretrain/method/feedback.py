"""Wrappers around any feedback: several weighted tasks, averaging over time, and controls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.conflict import Resolve, cosines, kept
from vpretrain.method.roles import Feedback, Gradient, Learner, LearnerT, State
from vpretrain.method.wrappers import WrappedFeedback
from vpretrain.system.contexts import evaluating, frozen
from vpretrain.system.errors import NonFinite


def gradient_on_aligned(learner: Learner[Any, Any, Any], pieces: Iterable[Tensor]) -> Gradient:
    """Returns the gradient over S of a feedback loss that comes in pieces.

    See :func:`vpretrain.method.vectors.summed_gradient`.

    While the pieces are computed the learner is in evaluation mode (no dropout), and only S
    requires gradients, so the blocks below it keep no activations.
    """
    members = {id(parameter) for parameter in learner.aligned.values()}
    others = [p for p in learner.model.parameters() if id(p) not in members]
    with torch.enable_grad(), evaluating(learner.model), frozen(others):
        return vectors.summed_gradient(pieces, learner.aligned)


def finite_norm(batches: Sequence[Gradient]) -> float:
    """Returns the norm of the mean of the batches' gradients.

    Raises:
        NonFinite: the norm is not finite.
    """
    size = float(vectors.norm(vectors.mean(batches)))
    if not math.isfinite(size):
        raise NonFinite(f"the feedback gradient's norm is {size}, and the step was not taken")
    return size


class MultiTaskFeedback(Feedback[LearnerT]):
    """Several feedback tasks combined: ``g_down = sum_j w_j g_j`` (eq. 18).

    The weights are normalised to sum to 1.

    Args:
        tasks: by name, at least one; all give the same number of batches. The i-th batches of all
            tasks are added up, so batches that share no rows stay independent.
        weights: > 0, one per task, relative to each other.
        resolve: how conflicts are resolved, within each batch (:mod:`vpretrain.method.conflict`).
        unit: whether each task's gradients are first divided by the norm of their mean. Signals of
            different kinds (nats per token, reward) have no common unit; the weights are then
            shares of the direction.
    """

    def __init__(
        self,
        tasks: Mapping[str, Feedback[LearnerT]],
        weights: Mapping[str, float],
        *,
        resolve: Resolve = kept,
        unit: bool = False,
    ) -> None:
        total = sum(weights[name] for name in tasks)
        self.tasks, self.resolve, self.unit = dict(tasks), resolve, unit
        # Normalised to mean 1, because `gradients` takes a mean over tasks.
        self.weights = {name: weights[name] * len(tasks) / total for name in tasks}
        self.cosines: dict[str, float] = {}

    def prepare(self, learner: LearnerT) -> None:
        for task in self.tasks.values():
            task.prepare(learner)

    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """Returns ``g_down`` over S, one per feedback batch."""
        return [vectors.mean(list(batch.values())) for batch in self.each(learner)]

    def each(self, learner: LearnerT) -> list[dict[str, Gradient]]:
        """Returns every task's contribution to each batch, conflicts resolved.

        ``g_down`` is the mean over tasks.

        Raises:
            NonFinite: a task's gradient is not finite, so no conflict can be measured.
        """
        gradients = {name: task.gradients(learner) for name, task in self.tasks.items()}
        for batches in gradients.values():
            finite_norm(batches)
        means = {name: vectors.mean(batches) for name, batches in gradients.items()}
        self.cosines = cosines(means)
        factors = {
            name: self.weights[name] / (self._size(means[name]) if self.unit else 1.0)
            for name in gradients
        }
        return [
            {
                name: {key: factors[name] * piece for key, piece in gradient.items()}
                for name, gradient in zip(gradients, self.resolve(batch), strict=True)
            }
            for batch in zip(*gradients.values(), strict=True)
        ]

    @staticmethod
    def _size(gradient: Gradient) -> float:
        # A zero gradient stays zero.
        return float(vectors.norm(gradient)) or 1.0

    def metrics(self) -> dict[str, float]:
        """Returns the tasks' metrics and the conflicts between them.

        ``conflict/a~b`` is the cosine of the mean gradients of a pair of tasks; each task's own
        metrics are ``feedback/task/...``.
        """
        metrics = {f"conflict/{pair}": cosine for pair, cosine in self.cosines.items()}
        for name, task in self.tasks.items():
            for metric, value in task.metrics().items():
                metrics[f"feedback/{name}/{metric}"] = value
        return metrics

    def state_dict(self) -> State:
        return {name: task.state_dict() for name, task in self.tasks.items()}

    def load_state_dict(self, state: State) -> None:
        for name, task in self.tasks.items():
            task.load_state_dict(state[name])


class EMAFeedback(WrappedFeedback[LearnerT]):
    """``g_down`` averaged over meta steps, separately for each feedback batch (ours).

    The learner moves little between two meta steps while the rows change, so an average over the
    past acts as a larger feedback batch at the cost of a small one. Batches that share no rows stay
    independent of each other.

    Args:
        feedback: gives the current gradients.
        memory: weight of the past, in [0, 1). The average covers about ``1 / (1 - memory)`` meta
            steps and is bias-corrected at the beginning.
    """

    def __init__(self, feedback: Feedback[LearnerT], memory: float) -> None:
        super().__init__(feedback)
        self.memory = memory
        self.sums: list[Gradient] = []
        self.weight = 0.0

    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """Returns the running average of each batch's gradient.

        Raises:
            NonFinite: a current gradient is not finite; the average is left unchanged.
        """
        present = self.feedback.gradients(learner)
        finite_norm(present)
        self.weight = self.memory * self.weight + 1
        past = self.sums or [
            {name: torch.zeros_like(g) for name, g in each.items()} for each in present
        ]
        self.sums = [
            {
                name: torch.add(now[name], total.to(now[name].device), alpha=self.memory)
                for name, total in sums.items()
            }
            for sums, now in zip(past, present, strict=True)
        ]
        return [{name: total / self.weight for name, total in sums.items()} for sums in self.sums]

    def state_dict(self) -> State:
        return {"sums": self.sums, "weight": self.weight, "feedback": self.feedback.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.sums, self.weight = list(state["sums"]), float(state["weight"])
        self.feedback.load_state_dict(state["feedback"])


class Reversed(WrappedFeedback[LearnerT]):
    """``-g_down``: the method steers away from the feedback (a control of ours).

    Everything else is unchanged, so an arm that gains as much with this control does not follow the
    feedback.

    Args:
        feedback: the real feedback.
    """

    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """Returns the negated gradients of the real feedback."""
        return [
            {name: -piece for name, piece in real.items()}
            for real in self.feedback.gradients(learner)
        ]


class RandomDirection(WrappedFeedback[LearnerT]):
    """Gaussian vectors with the norms of ``g_down``, parameter by parameter (a control of Table 5).

    The real feedback is computed for its norm alone, so that the control costs as much as the
    method.

    Args:
        feedback: the real feedback.
        seed: seeds the random vectors.
        fixed: if True one vector is drawn for the whole run, otherwise a new one for every batch. A
            fixed vector is the harder control: it always agrees with itself, so it is fully trusted
            and steers at least as hard as real feedback.
    """

    def __init__(self, feedback: Feedback[LearnerT], seed: int, *, fixed: bool) -> None:
        super().__init__(feedback)
        self.seed, self.fixed = seed, fixed
        self.generator = torch.Generator().manual_seed(seed)

    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """Returns random vectors over S, one per feedback batch."""
        return [self._like(real) for real in self.feedback.gradients(learner)]

    def state_dict(self) -> State:
        return {"generator": self.generator.get_state(), "feedback": self.feedback.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.feedback.load_state_dict(state["feedback"])

    def _like(self, real: Gradient) -> Gradient:
        if self.fixed:
            self.generator.manual_seed(self.seed)
        drawn = {}
        for name, piece in real.items():
            noise = torch.randn(piece.shape, generator=self.generator, dtype=torch.float32).to(
                piece
            )
            drawn[name] = noise * (piece.norm() / noise.norm())
        return drawn
