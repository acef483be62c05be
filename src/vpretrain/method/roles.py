"""The four roles of V-pretraining, independent of the modality.

The *learner* turns a *batch* of unlabeled data into a *context* (the outputs of its forward pass).
A *designer* turns the context into a *task* (what to predict), and the learner steps on the task's
loss. A *feedback* set supplies the gradient of its own loss, against which that step is valued.

A task is differentiable in its *controls*: the tensors that the designer chooses (soft-target
probabilities, token weights, masks). ``dV/d controls`` is the only information that a designer
receives about the learner and the feedback set.

Roles are generic base classes. Optional methods have defaults here, so callers never test what an
object supports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from vpretrain.method.selection import Selector

AlignmentName = Literal["dot", "optimizer_aware", "cosine", "lower_bound"]
"""How ``g_pre`` and ``g_down`` are compared (:mod:`vpretrain.method.value`)."""
Gradient = dict[str, Tensor]
"""A vector over the aligned parameters S, by parameter name (also used for a direction ``u``)."""
Metrics = dict[str, float]
"""Figures of a step, by name."""
State = dict[str, Any]
"""Contents of a checkpoint: nested dictionaries and lists of tensors, numbers, strings and None."""
Bounds = Mapping[str, tuple[float, float]]
"""Lowest and highest possible value of a figure, by the figure's name; infinite on a side where
reaching the limit would be no sign of collapse.
"""

BatchT = TypeVar("BatchT")
ContextT = TypeVar("ContextT")
TaskT = TypeVar("TaskT", bound="Task")
LearnerT = TypeVar("LearnerT", contravariant=True)


class Batch(Protocol):
    """One batch of the unlabeled stream."""

    @property
    def tokens(self) -> int:
        """Number of tokens (images), as counted by the budget."""
        ...

    @property
    def weight(self) -> float:
        """The size that the batch's loss is a mean over; batches of one step are weighted by it."""
        ...

    def digest(self) -> str:
        """Returns a hash of the data that was drawn."""
        ...


class Task(Protocol):
    """What the learner must predict on one batch: the output of the task construction ``c_phi``."""

    def controls(self) -> tuple[Tensor, ...]:
        """Returns the tensors chosen by the designer, with their graph to ``phi`` if any."""
        ...

    def with_controls(self, controls: tuple[Tensor, ...]) -> Self:
        """Returns the same task with other controls, in the order of :meth:`controls`."""
        ...


def detached(task: TaskT) -> TaskT:
    """Returns the task detached from the designer, for the learner (Algorithm 1, step 3)."""
    return task.with_controls(tuple(control.detach() for control in task.controls()))


@dataclass(frozen=True)
class Objective:
    """The self-supervised loss of one task, split at the first block of the aligned parameters S.

    Args:
        inputs: tensors through which the task's controls enter the part that depends on S, with
            their graph to the controls: the controls themselves (soft targets), or the output of
            the blocks below S (learned views). Computed once, whatever the estimator.
        loss: ``(S, inputs) -> L``, a scalar.
        here: ``inputs -> L`` at the learner's own S, from its training pass at no extra cost; None
            if that pass has another dtype than the loss, or uses dropout.
        narrow: returns a context in which ``loss`` computes in the narrow dtype of the learner's
            training pass; None if that pass has no narrow dtype, or the loss would suffer from it.
    """

    inputs: tuple[Tensor, ...]
    loss: Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], Tensor]
    here: Callable[[tuple[Tensor, ...]], Tensor] | None = None
    narrow: Callable[[], AbstractContextManager[Any]] | None = None


@dataclass(frozen=True)
class Estimate:
    """The value of a task (a scalar) and its gradient with respect to each control; detached."""

    value: Tensor
    gradient: tuple[Tensor, ...]


def mean_value(estimates: Sequence[Estimate]) -> float:
    """Returns the mean of the values along each feedback batch."""
    return sum(float(each.value) for each in estimates) / len(estimates)


class ValueFunction(ABC, Generic[ContextT]):
    """Values tasks on one part of a batch, under the latest feedback."""

    @property
    def linear(self) -> bool:
        """Whether the value along the mean of the feedback gradients is the mean of their
        values.
        """
        return True

    @abstractmethod
    def __call__(self, context: ContextT, task: Task) -> Estimate:
        """Returns the value and ``dV/d controls``, along the mean of the feedback gradients."""

    @abstractmethod
    def each(self, context: ContextT, task: Task) -> list[Estimate]:
        """Returns one estimate per feedback batch, along that batch's own gradient.

        Their agreement measures how far they can be trusted.
        """


class DirectedValue(ValueFunction[ContextT]):
    """A value function that can also value tasks along directions other than the feedback's.

    It works on this process's part of the data.
    """

    @abstractmethod
    def along(self, context: ContextT, task: Task, gradients: Sequence[Gradient]) -> list[Estimate]:
        """Returns the values of one task along several directions over S in place of ``g_down``."""

    @abstractmethod
    def gradient(self, context: ContextT, task: Task) -> Gradient:
        """Returns ``g_pre`` over S of this process's task, detached."""


class Learner(ABC, Generic[BatchT, ContextT, TaskT]):
    """The foundation model ``theta`` and its self-supervised loss."""

    model: nn.Module
    aligned: dict[str, nn.Parameter]
    """The parameters S on which gradients are compared, by name."""

    @abstractmethod
    def forward(self, batch: BatchT) -> ContextT:
        """Runs the model on an unlabeled batch; the context holds the graph to ``theta``."""

    @abstractmethod
    def loss(self, context: ContextT, task: TaskT) -> Tensor:
        """Returns ``L_pre(theta; task)``, a scalar with its graph to ``theta``."""

    @abstractmethod
    def objective(self, context: ContextT, task: TaskT) -> Objective:
        """Returns the same loss as a function of S and the controls' inputs, without dropout."""

    def after_step(self, progress: float) -> None:
        """Updates what follows the model (an EMA teacher); called once after every optimizer step.

        ``progress`` is the fraction of the budget that is used, in [0, 1].
        """

    def state_dict(self) -> State:
        """Returns the learner's state other than the parameters of :attr:`model`."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""


@dataclass(frozen=True)
class Learned(Generic[TaskT]):
    """The outcome of a designer's update.

    Args:
        metrics: may include ``gain``: ``V(task) - V(baseline task)`` for a task that did not depend
            on the feedback that values it. The task comes from the other half of the feedback
            (exact values), or was made before the feedback was known (networks, mixtures). In the
            latter case ``value.memory`` makes the feedback share its past with what the designer
            learned from, so that noise also shows a small gain.
        task: the next task of the same context, if the update has computed all that it takes; None:
            it has to be made.
    """

    metrics: Metrics = field(default_factory=dict)
    task: TaskT | None = None


@dataclass(frozen=True)
class Prepared:
    """What a designer consumed before the first step; it is charged to the run's budget.

    Args:
        tokens: number of tokens trained on.
        flops: floating-point operations.
        metrics: figures to log.
    """

    tokens: int = 0
    flops: float = 0.0
    metrics: Metrics = field(default_factory=dict)


class Designer(ABC, Generic[ContextT, TaskT]):
    """The task designer ``phi``. All differences between arms are behind this role.

    With the defaults alone it is a baseline: its own task, no feedback, no learning.
    """

    uses_feedback: bool = False
    """If False, no downstream gradient is ever computed."""
    selector: Selector[Any, ContextT] | None = None
    """Chooses which data of the stream the learner trains on; None: all of it. The designer keeps
    the selector's state.
    """
    alignment: AlignmentName | None = None
    """The alignment that the designer's rule is derived for; None: the run's alignment is used."""

    @property
    def draws(self) -> int:
        """Number of batches drawn from the stream per batch trained on."""
        return 1 if self.selector is None else self.selector.draws

    @property
    def bounds(self) -> Bounds:
        """Bounds of the figures in :meth:`learn`.

        A figure at its bound means that tasks are no longer designed.
        """
        return {}

    @abstractmethod
    def baseline_task(self, context: ContextT) -> TaskT:
        """Returns the task without steering (one-hot targets, unmodified views)."""

    def prepare(self) -> Prepared:
        """Does the work needed before the first step of a run.

        Not called on resuming from a checkpoint.
        """
        return Prepared()

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        """Returns the task of this batch, at every learner step; it needs no graph to ``phi``."""
        return self.baseline_task(context)

    def learn(self, context: ContextT, value_of: ValueFunction[ContextT]) -> Learned[TaskT]:
        """Takes one update of ``phi`` (Algorithm 1, step 2)."""
        return Learned()

    def predicted_values(self, context: ContextT) -> Tensor | None:
        """Returns a network's predicted value of each choice, up to scale.

        The order is that of the first control; None for designers that predict no values.
        """
        return None

    def state_dict(self) -> State:
        """Returns everything that :meth:`load_state_dict` needs."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""


class Feedback(ABC, Generic[LearnerT]):
    """The feedback set and its verifiable signal: the only place where labels appear."""

    def prepare(self, learner: LearnerT) -> None:
        """Computes what is needed from the untouched learner before the first step of a run.

        Not called on resuming from a checkpoint.
        """

    @abstractmethod
    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """Returns ``g_down`` over S (eq. 7) on each of the next feedback batches, detached.

        ``.grad`` and the random number generators are left untouched.
        """

    def metrics(self) -> Metrics:
        """Returns figures about the latest batches."""
        return {}

    def state_dict(self) -> State:
        """Returns the position in the feedback data and any learned or accumulated state."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`; the gradients that follow are the same, bit for bit."""


class Stream(ABC, Generic[BatchT]):
    """The endless stream of unlabeled batches."""

    def __iter__(self) -> Iterator[BatchT]:
        return self

    @abstractmethod
    def __next__(self) -> BatchT:
        """Returns the next batch."""

    @abstractmethod
    def state_dict(self) -> State:
        """Returns the exact position."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Moves to that position; the batches that follow are the same, bit for bit."""
