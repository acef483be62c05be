"""Declarations of the kinds of feedback, and what they are built from.

A kind is one file of this folder: the gradient (a class behind
:class:`vpretrain.method.roles.Feedback`) and the declaration with its keys::

    @SIGNALS.declare("likelihood", "the likelihood of verified solutions (eq. 38)")
    class LikelihoodSignal(Signal):
        def build(self, site: FeedbackSite) -> Feedback:
            return Likelihood(site.samplers, site.loss_mean)

``data.feedback.tasks`` of a recipe takes these keys with those of :class:`Task`, and
``Steering(feedback=...)`` of a trainer takes them alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import PositiveFloat, PositiveInt, create_model, model_validator

from vpretrain.config.kinds import KindChoice, Kinds, KindSection, one_of
from vpretrain.language.data.batch import LossMean
from vpretrain.language.data.rows import Document, Row
from vpretrain.language.data.stream import Sampler
from vpretrain.language.recipe.rows import Rows, Table
from vpretrain.method.roles import Feedback
from vpretrain.system.errors import Problem, shortened

_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class TaskRows:
    """The rows of one feedback task.

    Args:
        rows: prompts with verified solutions (for preferences, the chosen answers).
        rejected: for kinds with a second answer, the same prompt with that answer, by the
            ``origin`` of the row.
    """

    rows: list[Row]
    rejected: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskDocuments:
    """The tokenised rows of one feedback task.

    Args:
        documents: prompt (masked) and solution of each row.
        rows: rows by the ``origin`` of their document.
        rejected: documents of the second answers, by the same ``origin``.
    """

    documents: list[Document]
    rows: dict[str, Row]
    rejected: dict[str, Document] = field(default_factory=dict)


@dataclass(frozen=True)
class FeedbackSite:
    """What a kind of feedback is built from.

    Args:
        task: all rows of the task.
        samplers: samplers of ``task.documents``; one batch of each is used at a meta step.
        tokenizer: the learner's tokenizer; None with a trainer whose rows are tokens.
        seed: seed of sampling.
        where: dotted recipe key of the task, for messages.
        loss_mean: mean of a likelihood.
    """

    task: TaskDocuments
    samplers: Sequence[Sampler]
    tokenizer: Any
    seed: int
    where: str
    loss_mean: LossMean = "token"


class Signal(KindSection):
    """The keys of one kind of feedback, and how it is built."""

    reads_text: ClassVar[bool] = False
    """Whether it needs the tokenizer and the rows' text in addition to their tokens."""

    @property
    def second_answer(self) -> tuple[str, str] | None:
        """The recipe key that names the column of a second answer, and that column; None if the
        kind reads no second answer."""
        return None

    def problems(self, task: TaskRows, where: str) -> Iterator[Problem]:
        """Problems of valid rows that this kind cannot use.

        Args:
            task: rows of the task.
            where: dotted recipe key of the task's section.
        """
        yield from ()

    @abstractmethod
    def build(self, site: FeedbackSite) -> Feedback:
        """The feedback of one task."""


SIGNALS: Kinds[Signal] = Kinds()
"""The kinds of feedback on language."""


class Task(Signal):
    """A kind of feedback together with its rows in a recipe."""

    rows: Rows
    """Prompts with verified solutions."""
    weight: PositiveFloat = 1.0
    """Weight of this task in g_down, relative to the other tasks (eq. 18)."""
    batch_size: PositiveInt | None = None
    """Rows in one feedback batch of this task; null uses ``data.feedback.batch_size``."""
    sources: list[str] = []
    """Stream sources in this task's domain, whose documents are compared only with the tasks that
    name them (eq. 44-46). Documents of sources that no task names are compared with all tasks."""

    @model_validator(mode="after")
    def _has_second_answers(self) -> Self:
        if (second := self.second_answer) is None:
            return self
        key, column = second
        if not isinstance(self.rows, Table) or self.rows.solution is None:
            raise ValueError(
                f"the column `{key}` is read from a table (jsonl, csv, tsv, parquet, arrow, "
                "hub): give one with a `solution` column"
            )
        if self.rows.solution == column:
            raise ValueError(
                f"`{key}` names the column of the chosen answers, {column!r}; name the other one"
            )
        return self

    @property
    def second_rows(self) -> Rows | None:
        """The rows with the second answer as the solution; None if there is none."""
        if self.second_answer is None:
            return None
        return self.rows.model_copy(update={"solution": self.second_answer[1]})


@cache
def task_of(signal: type[Signal]) -> type[Task]:
    """The recipe section of a task of a declared kind."""
    bases: Any = (signal, Task)
    return create_model(
        signal.__name__.removesuffix("Signal") + "Task",
        __base__=bases,
        __module__=signal.__module__,
        __doc__=signal.__doc__,
    )


TASK = KindChoice(lambda: tuple(map(task_of, SIGNALS.kinds.values())), one_of)
"""Annotation of a task in a recipe: one of the declared kinds."""


def problems_of_rows(
    rows: Sequence[Row], accepted: str, message: str, where: str
) -> Iterator[Problem]:
    """The same problem for each of the first few rows, and one that counts the others."""
    for row in rows[:_PROBLEMS_SHOWN]:
        yield Problem(row.origin, shortened(row.text), accepted, message)
    if len(rows) > _PROBLEMS_SHOWN:
        yield Problem(
            f"{where}.rows", "", "", f"{len(rows) - _PROBLEMS_SHOWN} more rows are like that"
        )
