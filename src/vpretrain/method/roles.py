"""The few roles that everything else is written against; none of them knows what a token or a pixel
is.

A *batch* of unlabeled data becomes a *context* (what the learner made of it), a *designer* turns
the context into a *task* (what to predict), and the *learner* steps on the task's loss. A
*feedback* set says, through the gradient of its own loss, what kind of step it would like to see.

A task is differentiable in its *controls*: the tensors that the designer chooses (soft-target
probabilities, token weights, masks). ``dV/d controls`` is all a designer ever hears of the learner
and of the feedback set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from torch import Tensor, nn

from vpretrain.run.budget import Spending
from vpretrain.system.errors import Problem

Gradient = dict[str, Tensor]
"""A vector over the aligned parameters S, by parameter name (also a direction ``u`` in that space).
"""


@dataclass(frozen=True)
class Objective:
    """The self-supervised loss of one task, cut where the aligned parameters S begin to matter.

    Args:
        inputs: where the task's controls enter the part that depends on S, with their graph to the
            controls: the controls themselves (soft targets), or what the blocks below S make of
            them (learned views). They are computed once, whatever the estimator, and the controls
            are reached from them in one backward pass.
        loss: ``(S, inputs) -> L``, a scalar.
    """

    inputs: tuple[Tensor, ...]
    loss: Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Estimate:
    """What a task is worth: ``value`` (a scalar) and ``gradient`` (``dV/d controls``, a tensor a
    control); detached.
    """

    value: Tensor
    gradient: tuple[Tensor, ...]


class Task(Protocol):
    """What the learner is asked to predict on one batch: the output of the task construction
    ``c_phi``.
    """

    def controls(self) -> tuple[Tensor, ...]:
        """The tensors that the designer chose, connected to its parameters while the graph is
        alive.
        """
        ...

    def with_controls(self, controls: tuple[Tensor, ...]) -> Self:
        """The same task with other controls, in the order of :meth:`controls`."""
        ...


TaskT = TypeVar("TaskT", bound=Task)


def detached(task: TaskT) -> TaskT:
    """The task cut off from the designer: what the learner is allowed to see (Algorithm 1,
    step 3).
    """
    return task.with_controls(tuple(control.detach() for control in task.controls()))


class Learner(Protocol):
    """The foundation model ``theta`` and its self-supervised loss."""

    model: nn.Module
    aligned: dict[str, nn.Parameter]
    """The subset S on which gradients are compared, by name."""

    def forward(self, batch: Any) -> Any:
        """Runs the model on an unlabeled batch; the context holds the graph to ``theta``."""
        ...

    def loss(self, context: Any, task: Any) -> Tensor:
        """``L_pre(theta; task)``, a scalar with its graph to ``theta``."""
        ...

    def objective(self, context: Any, task: Any) -> Objective:
        """The same loss as a function of S only, every other parameter held where it is, without
        dropout.
        """
        ...

    def stepped(self, fraction: float) -> None:
        """Called once after every optimizer step: what follows the model (an EMA teacher, say)
        moves here.

        ``fraction`` of the budget is used, in [0, 1].
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the learner holds beside the parameters of :attr:`model`: an EMA teacher, a centre;
        empty without any.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        ...


class ValueFunction(Protocol):
    """Values a task under the current direction (see
    :class:`vpretrain.method.value_estimator.ValueEstimator`).
    """

    def __call__(self, context: Any, task: Any) -> Estimate:
        """Value of the task and its gradient with respect to the controls, averaged over the
        feedback batches.
        """
        ...

    def each(self, context: Any, task: Any) -> list[Estimate]:
        """The same under every feedback batch's own direction: how far they agree is how far they
        can be trusted.
        """
        ...


class Designer(Protocol):
    """The task designer ``phi``: everything that differs between arms lives behind this role."""

    uses_feedback: bool
    """Whether it wants feedback at all; if False no downstream gradient is ever computed."""

    def make_task(self, context: Any, value_of: ValueFunction) -> Any:
        """The task for this batch. Called at every learner step; gradients to ``phi`` are not
        needed here.
        """
        ...

    def baseline_task(self, context: Any) -> Any:
        """The task as it is without steering (one-hot targets, plain views)."""
        ...

    def learn(self, context: Any, value_of: ValueFunction) -> dict[str, float]:
        """One update of ``phi`` (Algorithm 1, step 2); returns metrics, among them ``gain``.

        ``gain`` is ``V(task) - V(plain task)`` where the task was made before this feedback was
        heard.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later :meth:`load_state_dict` needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Restores :meth:`state_dict`."""
        ...


class Feedback(Protocol):
    """The feedback set behind its verifiable signal."""

    def gradients(self, learner: Any) -> list[Gradient]:
        """``g_down`` over S (eq. 7) on each of the next feedback batches, detached; ``.grad`` is
        left alone.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where its draws stand, and whatever it learned or remembers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`; the gradients that follow are the same, bit for bit."""
        ...


class Batches(Protocol):
    """The endless stream of unlabeled batches.

    Each batch has ``tokens`` (or images; int), ``weight`` (what its loss is a mean over) and
    ``digest()`` (what was drawn).
    """

    def __iter__(self) -> Iterator[Any]:
        """Itself."""
        ...

    def __next__(self) -> Any:
        """The next batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The exact position."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to that position; the batches that follow are the same, bit for bit."""
        ...


@dataclass(frozen=True)
class Score:
    """One metric on held-out rows.

    Args:
        value: the figure.
        stderr: its standard error over rows.
        n: how many rows (or tokens, where the metric is a mean over tokens) it rests on.
        higher_is_better: which way is up.
        items: one figure a row, in the rows' order, whose mean is ``value``: what comparisons pair.
    """

    value: float
    stderr: float
    n: int
    higher_is_better: bool
    items: tuple[float, ...] = ()


@dataclass(frozen=True)
class Parts:
    """A run taken apart: what a modality builds from a recipe and the core trains.

    Args:
        stream: endless unlabeled batches.
        evaluate: scores the learner on held-out rows, by metric name (``test/nll``).
        held_out_loss: the feedback loss on fixed held-out rows, without dropout, in pieces that fit
            in memory: each is a scalar with its graph to the learner, and their sum is the loss (a
            mean over all those rows).
        save: writes the learner as an ordinary model folder.
        after: what comes after the stream, if anything: trains the learner on and adds the tokens
            and FLOPs it used; its seconds are charged by the caller. The budget is that of the
            stream.
        on_stream: whether the learner trains on the stream at all.
    """

    learner: Learner
    designer: Designer
    feedback: Feedback
    stream: Batches
    evaluate: Callable[[], dict[str, Score]]
    held_out_loss: Callable[[], Iterator[Tensor]]
    save: Callable[[Path], None]
    after: Callable[[Spending], None] | None = None
    on_stream: bool = True


class Modality(Protocol):
    """Language, vision, or one from outside."""

    arms: Mapping[str, str]
    """What each arm is, in a sentence; the first is the plain one, which hears no feedback."""
    direct: Collection[str]
    """Arms that train on something else than the stream."""
    demo: Sequence[str]
    """Arms of ``vpretrain demo``, the plain one first and a control last."""

    def load(self, recipe: Any) -> Any:
        """Reads data and finds the checkpoint: everything that does not depend on arm and seed.

        Raises:
            UserError: with what is wrong in recipe or data.
        """
        ...

    def check(self, recipe: Any) -> list[Problem]:
        """What is wrong with data and model; empty when a run can start."""
        ...

    def prepare(self, recipe: Any, out: Path | None) -> Path:
        """Makes the checkpoint that the recipe describes, in ``out`` or in the cache."""
        ...

    def build(self, recipe: Any, materials: Any) -> Parts:
        """Fresh parts for the recipe's arm and seed."""
        ...


@runtime_checkable
class Draws(Protocol):
    """A modality that can show what a designer does to a batch."""

    def picture(self, recipe: Any, parts: Parts, path: Path) -> bool:
        """Draws the next batch of the stream as the run's designer shapes it; False, and no file,
        where none can be seen.
        """
        ...


class Explain(Protocol):
    """A modality's part of ``vpretrain explain``: looks at a sample of a run's stream and writes
    the page.
    """

    def __call__(self, recipe: Any, folder: Path, *, documents: int, out: Path) -> dict[str, Any]:
        """See :func:`vpretrain.studies.explain.explain`; the folder is known to hold the recipe's
        model and designer.
        """
        ...
