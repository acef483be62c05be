"""The four roles of V-pretraining; none of them knows what a token or a pixel is.

A *batch* of unlabeled data becomes a *context* (what the learner made of it). A *designer* turns
the context into a *task* (what to predict), and the *learner* steps on the task's loss. A
*feedback* set says, through the gradient of its own loss, which step would help it.

A task is differentiable in its *controls*: the tensors that the designer chooses (soft-target
probabilities, token weights, masks). ``dV/d controls`` is all that a designer ever learns of the
learner and of the feedback set.

Roles are generic base classes. Whatever is optional has a default here, so that nobody has to ask
an object what it can do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from vpretrain.method.selection import Selector

AlignmentName = Literal["dot", "optimizer_aware", "cosine", "lower_bound"]
"""What compares ``g_pre`` and ``g_down`` (:mod:`vpretrain.method.value`)."""
Gradient = dict[str, Tensor]
"""A vector over the aligned parameters S, by parameter name (also a direction ``u`` there)."""
Metrics = dict[str, float]
"""Figures of a step, by name."""
State = dict[str, Any]
"""What a checkpoint keeps: nested dictionaries and lists of tensors, numbers, strings, None."""
Bounds = Mapping[str, tuple[float, float]]
"""The lowest and the highest that a figure can be, by its name; infinite where standing there would
be no sign of anything."""

BatchT = TypeVar("BatchT")
ContextT = TypeVar("ContextT")
TaskT = TypeVar("TaskT", bound="Task")
LearnerT = TypeVar("LearnerT", contravariant=True)


class Batch(Protocol):
    """One batch of the unlabeled stream."""

    @property
    def tokens(self) -> int:
        """Tokens (images): what a budget counts."""
        ...

    @property
    def weight(self) -> float:
        """What its loss is a mean over: batches that make one step together count by it."""
        ...

    def digest(self) -> str:
        """Proof of what was drawn."""
        ...


class Task(Protocol):
    """What the learner is asked to predict on one batch: the output of the task construction
    ``c_phi``."""

    def controls(self) -> tuple[Tensor, ...]:
        """The tensors that the designer chose, with their graph to ``phi`` while there is one."""
        ...

    def with_controls(self, controls: tuple[Tensor, ...]) -> Self:
        """The same task with other controls, in the order of :meth:`controls`."""
        ...


def detached(task: TaskT) -> TaskT:
    """The task cut off from the designer: what the learner may see (Algorithm 1, step 3)."""
    return task.with_controls(tuple(control.detach() for control in task.controls()))


@dataclass(frozen=True)
class Objective:
    """The self-supervised loss of one task, cut where the aligned parameters S begin to matter.

    Args:
        inputs: where the task's controls enter the part that depends on S, with their graph to the
            controls: the controls themselves (soft targets), or what the blocks below S make of
            them (learned views). Computed once, whatever the estimator.
        loss: ``(S, inputs) -> L``, a scalar.
        here: ``inputs -> L`` at the learner's own S, from the pass that it trains by, which costs
            nothing more; None where that pass is of another dtype than the loss, or drops out.
    """

    inputs: tuple[Tensor, ...]
    loss: Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], Tensor]
    here: Callable[[tuple[Tensor, ...]], Tensor] | None = None


@dataclass(frozen=True)
class Estimate:
    """The value of a task (a scalar), and its gradient with respect to each control; detached."""

    value: Tensor
    gradient: tuple[Tensor, ...]


class ValueFunction(ABC, Generic[ContextT]):
    """Values tasks on one part of a batch, under the latest feedback."""

    @property
    def linear(self) -> bool:
        """Whether the value along the mean of the feedback gradients is the mean of those along
        each of them."""
        return True

    @abstractmethod
    def __call__(self, context: ContextT, task: Task) -> Estimate:
        """Value of the task, and ``dV/d controls``, along the mean of the feedback gradients."""

    @abstractmethod
    def each(self, context: ContextT, task: Task) -> list[Estimate]:
        """The same along every feedback batch's own gradient: how far they agree is how far they
        can be trusted."""


class DirectedValue(ValueFunction[ContextT]):
    """A value function that can look along other directions than that of the feedback, on this
    process's part of the data."""

    @abstractmethod
    def along(self, context: ContextT, task: Task, gradients: Sequence[Gradient]) -> list[Estimate]:
        """Values of one task along several directions over S in the place of ``g_down``."""

    @abstractmethod
    def gradient(self, context: ContextT, task: Task) -> Gradient:
        """``g_pre`` over S of this process's task, detached."""


class Learner(ABC, Generic[BatchT, ContextT, TaskT]):
    """The foundation model ``theta`` and its self-supervised loss."""

    model: nn.Module
    aligned: dict[str, nn.Parameter]
    """The subset S on which gradients are compared, by name."""

    @abstractmethod
    def forward(self, batch: BatchT) -> ContextT:
        """Runs the model on an unlabeled batch; the context holds the graph to ``theta``."""

    @abstractmethod
    def loss(self, context: ContextT, task: TaskT) -> Tensor:
        """``L_pre(theta; task)``, a scalar with its graph to ``theta``."""

    @abstractmethod
    def objective(self, context: ContextT, task: TaskT) -> Objective:
        """The same loss as a function of S alone, without dropout."""

    def after_step(self, progress: float) -> None:
        """Called once after every optimizer step: what follows the model (an EMA teacher) moves
        here. ``progress`` is the fraction of the budget that is used, in [0, 1]."""

    def state_dict(self) -> State:
        """What the learner holds beside the parameters of :attr:`model`."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""


@dataclass(frozen=True)
class Learned(Generic[TaskT]):
    """What a designer's update came to.

    Args:
        metrics: among them ``gain``, ``V(task) - V(baseline task)`` of a task that this feedback
            had no part in: one from the other half of it (exact values), or made before it was
            known (networks, mixtures; with ``value.memory`` it shares its past with what they have
            learned from, and noise gains a little too).
        task: the next task of the same context, where the update has just computed all that it
            takes; None: it has to be made.
    """

    metrics: Metrics = field(default_factory=dict)
    task: TaskT | None = None


@dataclass(frozen=True)
class Prepared:
    """What a designer used before the first step; it is charged to the run's budget.

    Args:
        tokens: that something was trained on.
        flops: floating-point operations.
        metrics: figures to log.
    """

    tokens: int = 0
    flops: float = 0.0
    metrics: Metrics = field(default_factory=dict)


class Designer(ABC, Generic[ContextT, TaskT]):
    """The task designer ``phi``: all that differs between arms lives behind this role.

    With the defaults alone it is a baseline: a task of its own, no feedback, nothing to learn.
    """

    uses_feedback: bool = False
    """If False no downstream gradient is ever computed."""
    selector: Selector[Any, ContextT] | None = None
    """Chooses what of the stream its tasks are made for, from batches of the learner's; None: they
    are made for all of it. Its state is the designer's to keep."""
    alignment: AlignmentName | None = None
    """What its rule is stated for; None: whatever the run has."""

    @property
    def draws(self) -> int:
        """Batches of the stream that are drawn for one that is trained on."""
        return 1 if self.selector is None else self.selector.draws

    @property
    def bounds(self) -> Bounds:
        """Where figures of :meth:`learn` stand when the tasks are no longer designed."""
        return {}

    @abstractmethod
    def baseline_task(self, context: ContextT) -> TaskT:
        """The task as it is without steering (one-hot targets, plain views)."""

    def prepare(self) -> Prepared:
        """Whatever it takes before the first step of a run: called once, and not by a run that goes
        on from a checkpoint."""
        return Prepared()

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        """The task of this batch, at every learner step; it needs no graph to ``phi``."""
        return self.baseline_task(context)

    def learn(self, context: ContextT, value_of: ValueFunction[ContextT]) -> Learned[TaskT]:
        """One update of ``phi`` (Algorithm 1, step 2)."""
        return Learned()

    def predicted_values(self, context: ContextT) -> Tensor | None:
        """What a network of the designer's takes each choice to be worth, in the order of the first
        control and up to scale; None where it predicts no values."""
        return None

    def state_dict(self) -> State:
        """Everything that a later :meth:`load_state_dict` needs."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""


class Feedback(ABC, Generic[LearnerT]):
    """The feedback set behind its verifiable signal: the only place where labels appear."""

    def prepare(self, learner: LearnerT) -> None:
        """Whatever it takes of the untouched learner before the first step of a run: not called by
        a run that goes on from a checkpoint."""

    @abstractmethod
    def gradients(self, learner: LearnerT) -> list[Gradient]:
        """``g_down`` over S (eq. 7) on each of the next feedback batches, detached; ``.grad`` and
        the random number generators are left alone."""

    def metrics(self) -> Metrics:
        """Figures about the batches that were used last."""
        return {}

    def state_dict(self) -> State:
        """Where its draws stand, and whatever it learned or remembers."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`; the gradients that follow are the same, bit for bit."""


class Stream(ABC, Generic[BatchT]):
    """The endless stream of unlabeled batches."""

    def __iter__(self) -> Iterator[BatchT]:
        return self

    @abstractmethod
    def __next__(self) -> BatchT:
        """The next batch."""

    @abstractmethod
    def state_dict(self) -> State:
        """The exact position."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Goes to that position; the batches that follow are the same, bit for bit."""
