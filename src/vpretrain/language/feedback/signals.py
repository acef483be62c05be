"""What the kinds of feedback have in common: where they are declared, and what one is built from.

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
    """The rows of one task.

    Args:
        rows: prompts with their verified solutions (the chosen answers of preferences).
        rejected: of kinds that read a second answer, by the ``origin`` of the row: the same prompt
            with the other answer.
    """

    rows: list[Row]
    rejected: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskDocuments:
    """The same in tokens.

    Args:
        documents: prompt (masked) and solution.
        rows: the row behind each document's ``origin``.
        rejected: second answers, by the same.
    """

    documents: list[Document]
    rows: dict[str, Row]
    rejected: dict[str, Document] = field(default_factory=dict)


@dataclass(frozen=True)
class FeedbackSite:
    """What a kind of feedback may read of the run that it is built for.

    Args:
        task: all its rows.
        samplers: batches of ``task.documents``; one of each is used at a meta step.
        tokenizer: of the learner; None beside a trainer whose rows are tokens.
        seed: of draws.
        where: its dotted key, for messages.
        loss_mean: what a likelihood is a mean over.
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
    """Whether it needs tokenizer and text of the rows beside their tokens."""

    @property
    def second_answer(self) -> tuple[str, str] | None:
        """The key that names a column with another answer to each prompt, and that column."""
        return None

    def problems(self, task: TaskRows, where: str) -> Iterator[Problem]:
        """Rows that are good in themselves, but not for what this kind does with them.

        Args:
            task: its rows.
            where: the dotted key of its section.
        """
        yield from ()

    @abstractmethod
    def build(self, site: FeedbackSite) -> Feedback:
        """The feedback of one task's rows."""


SIGNALS: Kinds[Signal] = Kinds()
"""The kinds of feedback on language."""


class Task(Signal):
    """A kind of feedback with the rows that a recipe gives to it."""

    rows: Rows
    """Prompts with verified solutions."""
    weight: PositiveFloat = 1.0
    """Share of this task in g_down, relative to the other tasks (eq. 18)."""
    batch_size: PositiveInt | None = None
    """Rows in one feedback batch of this task; null takes ``data.feedback.batch_size``."""
    sources: list[str] = []
    """Sources of the stream that are of this task's domain: their documents are compared with the
    tasks that name them (eq. 44-46), documents of sources that no task names with all tasks
    together. Naming none anywhere compares everything with everything."""

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
        """The same prompts with the other answers."""
        if self.second_answer is None:
            return None
        return self.rows.model_copy(update={"solution": self.second_answer[1]})


@cache
def task_of(signal: type[Signal]) -> type[Task]:
    """The section of a recipe's task of a declared kind."""
    bases: Any = (signal, Task)
    return create_model(
        signal.__name__.removesuffix("Signal") + "Task",
        __base__=bases,
        __module__=signal.__module__,
        __doc__=signal.__doc__,
    )


TASK = KindChoice(lambda: tuple(map(task_of, SIGNALS.kinds.values())), one_of)
"""The annotation of a recipe's task."""


def problems_of_rows(
    rows: Sequence[Row], accepted: str, message: str, where: str
) -> Iterator[Problem]:
    """The same problem with each of the first rows, and how many more have it."""
    for row in rows[:_PROBLEMS_SHOWN]:
        yield Problem(row.origin, shortened(row.text), accepted, message)
    if len(rows) > _PROBLEMS_SHOWN:
        yield Problem(
            f"{where}.rows", "", "", f"{len(rows) - _PROBLEMS_SHOWN} more rows are like that"
        )
