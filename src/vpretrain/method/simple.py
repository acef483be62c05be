"""Simple implementations of the roles in :mod:`vpretrain.method.roles`, for a modality of your own.

Most of them take a function: a learner that runs its whole model in one pass, a stream and a
feedback set over numbered items, and a baseline without steering. Anything more (a pass split where
S begins, a teacher) needs its own class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from vpretrain.method.feedback import gradient_on_aligned
from vpretrain.method.network import Surface
from vpretrain.method.roles import (
    BatchT,
    ContextT,
    Designer,
    Feedback,
    Gradient,
    Learner,
    Objective,
    State,
    Stream,
    TaskT,
)
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error
from vpretrain.system.sampling import Order

Loss = Callable[[Callable[..., Any], Any, Any], Tensor]
"""``(model, batch, task) -> L_pre``, a scalar. The loss calls the model, whose parameters may be
replaced for the call.
"""


class WholeLearner(Learner[BatchT, BatchT, TaskT]):
    """A learner whose loss is one pass of the whole model, without other state.

    The blocks below S run again whenever a task is valued. The model must cast its inputs to the
    dtype of its parameters: S is valued in float32 or wider, by ``vpretrain doctor`` in float64.

    Args:
        model: the module that trains.
        loss: computes the loss of a batch under a task.
        aligned: S, as shell patterns over parameter names.

    Raises:
        UserError: a pattern matches no trainable parameter.
    """

    def __init__(self, model: nn.Module, loss: Loss, aligned: Sequence[str]) -> None:
        self.model, self._loss = model, loss
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        for pattern in aligned:
            if not any(fnmatchcase(name, pattern) for name in names):
                message = "this fits no parameter that trains"
                raise user_error(
                    "aligned", message, value=pattern, accepted=", ".join(names[:5]) + ", ..."
                )
        parameters = dict(model.named_parameters())
        self.aligned = {
            name: parameters[name]
            for name in names
            if any(fnmatchcase(name, pattern) for pattern in aligned)
        }

    def forward(self, batch: BatchT) -> BatchT:
        """Returns the batch itself: nothing is computed before the task is known."""
        return batch

    def loss(self, context: BatchT, task: TaskT) -> Tensor:
        """Returns ``L_pre``, with its graph to the model."""
        return self._loss(self.model, context, task)

    def objective(self, context: BatchT, task: TaskT) -> Objective:
        """Returns the loss as a function of S, without dropout; its inputs are the controls."""
        own = {name: parameter.detach() for name, parameter in self.model.named_parameters()}

        def loss(parameters: Mapping[str, Tensor], controls: tuple[Tensor, ...]) -> Tensor:
            # S may be wider than the model, and the designer's controls wider than both: cast to S.
            dtype = next(iter(parameters.values())).dtype
            whole = {name: piece.to(dtype) for name, piece in own.items()} | dict(parameters)

            def call(*given: Any, **named: Any) -> Any:
                return functional_call(self.model, whole, given, named)

            with evaluating(self.model):
                return self._loss(
                    call, context, task.with_controls(tuple(each.to(dtype) for each in controls))
                )

        return Objective(task.controls(), loss)


class ShuffledBatches(Stream[BatchT]):
    """Endless batches of items, reshuffled in every pass (:class:`vpretrain.method.roles.Stream`).

    Args:
        count: number of items, at least 1.
        batch_size: items per batch.
        key: seeds the order.
        make: builds a batch from item numbers.
    """

    def __init__(
        self, count: int, batch_size: int, key: str, make: Callable[[list[int]], BatchT]
    ) -> None:
        self.order, self.batch_size, self.make = Order(count, key), batch_size, make
        self.drawn = 0

    def __next__(self) -> BatchT:
        numbers = range(self.drawn, self.drawn + self.batch_size)
        self.drawn = numbers.stop
        return self.make([self.order[number] for number in numbers])

    def state_dict(self) -> State:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: State) -> None:
        self.drawn = int(state["drawn"])


def halves(
    count: int, batch_size: int, key: str, make: Callable[[list[int]], BatchT]
) -> tuple[ShuffledBatches[BatchT], ShuffledBatches[BatchT]]:
    """Returns two endless streams of feedback batches, over the even and the odd items.

    See :class:`ShuffledBatches` for the arguments.
    """
    even = ShuffledBatches(
        (count + 1) // 2,
        batch_size,
        f"{key} even",
        lambda places: make([2 * place for place in places]),
    )
    odd = ShuffledBatches(
        count // 2,
        batch_size,
        f"{key} odd",
        lambda places: make([2 * place + 1 for place in places]),
    )
    return even, odd


class LossFeedback(Feedback[Learner[Any, Any, Any]]):
    """Feedback whose ``g_down`` is the gradient of a loss on verified items.

    See :class:`vpretrain.method.roles.Feedback`.

    Args:
        batches: endless streams, each giving one feedback batch per meta step. The agreement of two
            or more that share no item measures how far they can be trusted.
        loss: ``L_down`` of a batch, with its graph to the learner's model.
    """

    def __init__(
        self, batches: Sequence[ShuffledBatches[Any]], loss: Callable[[Any], Tensor]
    ) -> None:
        self.batches, self.loss = list(batches), loss

    def gradients(self, learner: Learner[Any, Any, Any]) -> list[Gradient]:
        """Returns one gradient per feedback batch, without dropout.

        Parameters of S that the loss does not reach have zeros.
        """
        return [
            gradient_on_aligned(learner, map(self.loss, (next(batch),))) for batch in self.batches
        ]

    def state_dict(self) -> State:
        return {"batches": [batch.state_dict() for batch in self.batches]}

    def load_state_dict(self, state: State) -> None:
        for batch, position in zip(self.batches, state["batches"], strict=True):
            batch.load_state_dict(position)


@dataclass
class BaselineDesigner(Designer[ContextT, TaskT]):
    """Self-supervised learning without steering: no feedback, no state.

    Args:
        surface: gives the learner's baseline task.
    """

    surface: Surface[ContextT, TaskT]

    def baseline_task(self, context: ContextT) -> TaskT:
        return self.surface.baseline_task(context)
