"""Looking ahead: what a task is worth on the way to where fine-tuning on the feedback would lead
(ours).

The paper values a task by the slope of its loss along ``-g_down``: the value of an infinitely small
step. Here a copy of S is fine-tuned on the feedback for some steps, away from the learner, and a
task is worth what its loss falls by between S and that copy,

    V(task) = L_pre(S; task) - L_pre(S - u; task),    S - u the copy.

For a short way this is ``<u, g_pre>``, the paper's V with ``u`` in the place of ``g_down``. For a
copy of the whole model that is trained once, before the run, it is Rho-1's excess loss over a
reference model. In between the copy is as cheap as S is small, it follows the learner, and
gradients of small feedback batches add up along a way instead of one of them deciding.

Labels reach the learner through the designer alone, as ever: it is never moved along ``u``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.method import vectors
from vpretrain.method.feedback import finite_norm
from vpretrain.method.roles import Feedback, Gradient, Learner, Metrics, State

MOMENTS = 2
"""Of Adam, each of the size of the way: what a :class:`Way` holds beside it."""


class Way:
    """One feedback batch's way back from its copy of S, and the Adam that lengthens it.

    Args:
        aligned: S.
        learning_rate: of Adam.
    """

    def __init__(self, aligned: Mapping[str, nn.Parameter], learning_rate: float) -> None:
        self.back = {name: torch.zeros_like(vectors.wide(p)) for name, p in aligned.items()}
        self.optimizer = torch.optim.Adam(list(self.back.values()), lr=learning_rate)

    def fade(self, memory: float) -> None:
        """Shortens the way: what was asked for long ago, from another learner, counts less."""
        for piece in self.back.values():
            piece.mul_(memory)

    def lengthen(self, gradient: Gradient) -> None:
        """One step of the copy down the feedback loss; ``gradient`` is that loss's there."""
        for name, piece in self.back.items():
            piece.grad = -gradient[name].to(piece)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> State:
        return {"back": self.back, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        for name, piece in self.back.items():
            piece.copy_(state["back"][name])
        self.optimizer.load_state_dict(state["optimizer"])


class Lookahead(Feedback[Learner[Any, Any, Any]]):
    """In the place of ``g_down``: the way back from a copy of S that is fine-tuned on the feedback,
    one for each feedback batch, so that ways share no rows and their agreement tells something.

    Args:
        feedback: gives the gradients, of whatever S the learner has.
        batches: feedback batches that it gives at a time.
        steps: of a copy at every meta step, each on fresh rows, at least 1.
        learning_rate: of Adam, in units of a parameter's change a step.
        memory: what is kept of a way from one meta step to the next, in [0, 1): the ways grow to
            some ``steps / (1 - memory)`` steps.
    """

    def __init__(
        self,
        feedback: Feedback[Any],
        *,
        batches: int,
        steps: int,
        learning_rate: float,
        memory: float,
    ) -> None:
        self.feedback, self.batches, self.steps = feedback, batches, steps
        self.learning_rate, self.memory = learning_rate, memory
        self.ways: list[Way] = []
        self.saved: list[State] = []

    def gradients(self, learner: Learner[Any, Any, Any], only: int | None = None) -> list[Gradient]:
        """``u`` over S, one per feedback batch; the learner is as it was.

        Raises:
            NonFinite: a gradient on the way is not.
        """
        self._begin(learner)
        for at in range(self.batches) if only is None else [only]:
            way = self.ways[at]
            way.fade(self.memory)
            for _ in range(self.steps):
                with _moved(learner.aligned, way.back):
                    [gradient] = self.feedback.gradients(learner, at)
                finite_norm([gradient])
                way.lengthen(gradient)
        return [way.back for way in (self.ways if only is None else [self.ways[only]])]

    def metrics(self) -> Metrics:
        """What the feedback tells, and ``lookahead_norm``: the mean length of the ways."""
        lengths = [float(vectors.norm(way.back)) for way in self.ways]
        return self.feedback.metrics() | {"lookahead_norm": sum(lengths) / max(1, len(lengths))}

    def state_dict(self) -> State:
        ways = [way.state_dict() for way in self.ways] or self.saved
        return {"ways": ways, "feedback": self.feedback.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Ways are put back when they are asked for next: only the learner says what S is."""
        self.feedback.load_state_dict(state["feedback"])
        self.ways, self.saved = [], list(state["ways"])

    def _begin(self, learner: Learner[Any, Any, Any]) -> None:
        """Ways of no length, or those of a checkpoint."""
        if self.ways:
            return
        self.ways = [Way(learner.aligned, self.learning_rate) for _ in range(self.batches)]
        for way, state in zip(self.ways, self.saved, strict=False):
            way.load_state_dict(state)
        self.saved = []


@contextmanager
def _moved(aligned: Mapping[str, nn.Parameter], back: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the learner's S is the copy's; after it the learner's own, bit for bit."""
    own = {name: parameter.data for name, parameter in aligned.items()}
    try:
        for name, parameter in aligned.items():
            # Another tensor for a while: a graph that is alive holds the own one, unchanged.
            parameter.data = (own[name] - back[name]).to(own[name].dtype)
        yield
    finally:
        for name, parameter in aligned.items():
            parameter.data = own[name]
