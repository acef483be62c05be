"""What can be done to any feedback: weigh several tasks together, remember them, or put noise in
their place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.conflict import Resolve, cosines, kept
from vpretrain.method.roles import Feedback, Gradient, Learner, LearnerT, State
from vpretrain.system.contexts import evaluating, frozen
from vpretrain.system.errors import NonFinite


def gradient_on_aligned(learner: Learner[Any, Any, Any], pieces: Iterable[Tensor]) -> Gradient:
    """The gradient over S of a feedback loss that comes in pieces
    (:func:`vpretrain.method.vectors.summed_gradient`).

    While pieces are made the learner is in evaluation mode (no dropout), and nothing but S asks for
    gradients, so that the blocks below it keep no activations.
    """
    members = {id(parameter) for parameter in learner.aligned.values()}
    others = [p for p in learner.model.parameters() if id(p) not in members]
    with torch.enable_grad(), evaluating(learner.model), frozen(others):
        return vectors.summed_gradient(pieces, learner.aligned)


def finite_norm(batches: Sequence[Gradient]) -> float:
    """The norm of the mean of the batches' gradients.

    Raises:
        NonFinite: it is not.
    """
    size = float(vectors.norm(vectors.mean(batches)))
    if not math.isfinite(size):
        raise NonFinite(f"the feedback gradient's norm is {size}, and the step was not taken")
    return size


class MultiTaskFeedback(Feedback[LearnerT]):
    """Several feedback tasks as one: ``g_down = sum_j w_j g_j`` (eq. 18), the weights divided by
    their sum.

    Args:
        tasks: by name, at least one; all give the same number of batches. The gradient of a
            batch is added to those of the same batch of the others, so that batches that share no
            rows stay independent.
        weights: > 0, one a task, relative to each other.
        resolve: what becomes of conflicts, within each batch (:mod:`vpretrain.method.conflict`).
        unit: whether each task's gradients are first divided by the norm of their mean. Signals of
            different kinds (nats a token, reward) have no common unit; weights then are shares of
            the direction.
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
        # Their mean is 1.
        self.weights = {name: weights[name] * len(tasks) / total for name in tasks}
        self.cosines: dict[str, float] = {}

    def prepare(self, learner: LearnerT) -> None:
        for task in self.tasks.values():
            task.prepare(learner)

    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """``g_down`` over S, one per feedback batch."""
        return [vectors.mean(list(batch.values())) for batch in self.each(learner)]

    def each(self, learner: LearnerT) -> list[dict[str, Gradient]]:
        """Every task's share of each batch, conflicts resolved: ``g_down`` is the mean
        over tasks.

        Raises:
            NonFinite: a task's gradient is not; no conflict can be told from it.
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
        # A task that has nothing to say keeps its zeros.
        return float(vectors.norm(gradient)) or 1.0

    def metrics(self) -> dict[str, float]:
        """``conflict/a~b``, the cosine of each two tasks' mean gradients, and each task's own as
        ``feedback/task/...``.
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


class EMAFeedback(Feedback[LearnerT]):
    """``g_down`` averaged over meta steps, each feedback batch with those of its own past (ours).

    The learner moves little between two meta steps while the rows change: an average over
    the past is a larger feedback batch at the price of a small one. Batches that share no rows stay
    independent of each other.

    Args:
        feedback: gives the gradients of the present.
        memory: weight of the past, in [0, 1); the average is over ``1 / (1 - memory)`` meta steps
            or so, without bias towards zero at the beginning.
    """

    def __init__(self, feedback: Feedback[LearnerT], memory: float) -> None:
        self.feedback, self.memory = feedback, memory
        self.sums: list[Gradient] = []
        self.weight = 0.0

    def prepare(self, learner: LearnerT) -> None:
        self.feedback.prepare(learner)

    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """The running average of each batch's gradient.

        Raises:
            NonFinite: a gradient of the present is not; the average stays as it was.
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

    def metrics(self) -> dict[str, float]:
        """What the feedback of the present tells."""
        return self.feedback.metrics()

    def state_dict(self) -> State:
        return {"sums": self.sums, "weight": self.weight, "feedback": self.feedback.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.sums, self.weight = list(state["sums"]), float(state["weight"])
        self.feedback.load_state_dict(state["feedback"])


class Reversed(Feedback[LearnerT]):
    """``-g_down``: what is good for the feedback counts as bad (a control of ours). All else is as
    it was, so that what gains as much this way does not follow the feedback.

    Args:
        feedback: the real one.
    """

    def __init__(self, feedback: Feedback[LearnerT]) -> None:
        self.feedback = feedback

    def prepare(self, learner: LearnerT) -> None:
        self.feedback.prepare(learner)

    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """Those of the real feedback, negated."""
        return [
            {name: -piece for name, piece in real.items()}
            for real in self.feedback.gradients(learner)
        ]

    def metrics(self) -> dict[str, float]:
        return self.feedback.metrics()

    def state_dict(self) -> State:
        return self.feedback.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.feedback.load_state_dict(state)


class RandomDirection(Feedback[LearnerT]):
    """Gaussian vectors in the place of ``g_down``, parameter by parameter of the same norm (a
    control of Table 5).

    The real feedback is computed and thrown away but for its size, so that the control costs what
    the method costs.

    Args:
        feedback: the real one.
        seed: of the random vectors.
        fixed: if True one vector is drawn for the whole run (the harder control: noise that always
            says the same, so that it is trusted fully and steers at least as hard as real
            feedback), otherwise a fresh one for every batch.
    """

    def __init__(self, feedback: Feedback[LearnerT], seed: int, *, fixed: bool) -> None:
        self.feedback, self.seed, self.fixed = feedback, seed, fixed
        self.generator = torch.Generator().manual_seed(seed)

    def prepare(self, learner: LearnerT) -> None:
        self.feedback.prepare(learner)

    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """Random vectors over S, one per feedback batch."""
        return [self._like(real) for real in self.feedback.gradients(learner)]

    def metrics(self) -> dict[str, float]:
        return self.feedback.metrics()

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
