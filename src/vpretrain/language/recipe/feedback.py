"""The verified examples that steer: one set of rows, or several tasks of different kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import Section
from vpretrain.language.recipe.common import Answer
from vpretrain.language.recipe.rows import Rows, Table


class Task(Section):
    """What every feedback task has."""

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


class LikelihoodTask(Task):
    """The likelihood of verified solutions (eq. 38)."""

    kind: Literal["likelihood"]


class RewardTask(Task):
    """Answers of the learner's own, scored by a checker: the policy gradient of their expected
    reward.
    """

    kind: Literal["reward"]
    checker: str
    """What an answer earns: ``exact``, ``number`` or ``contains`` (or one put into ``CHECKERS`` in
    Python).
    """
    answer: Answer | None = None
    """Null takes the checker's own."""
    checker_seconds: PositiveFloat = 10.0
    """What one call of it may take; a batch on which it takes longer, or raises, is left out."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Answers drawn to each prompt; what one earns is compared with the others."""
    temperature: PositiveFloat = 1.0
    """Of the draws; the gradient is that of the policy at this temperature."""
    new_tokens: PositiveInt = 256
    """The longest answer."""
    baseline: Literal["leave_one_out", "group_normalised"] = "leave_one_out"
    """``leave_one_out`` is unbiased; ``group_normalised`` divides by the spread of the rewards to a
    prompt, as GRPO does.
    """


class PreferenceTask(Task):
    """Chosen over rejected answers: the gradient of direct preference optimisation against the
    untouched checkpoint.
    """

    kind: Literal["preference"]
    rejected: str
    """Column of the rejected answer; ``rows.solution`` is that of the chosen one."""
    beta: PositiveFloat = 0.1
    """How strongly the learner is kept near the checkpoint that it came from."""

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        if not isinstance(self.rows, Table) or self.rows.solution is None:
            raise ValueError(
                "preferences are read from a table: rows of kind jsonl, parquet or hub, with "
                "a `solution` column"
            )
        if self.rows.solution == self.rejected:
            raise ValueError(
                f"`rejected` names the column of the chosen answers, {self.rejected!r}; name "
                "the other one"
            )
        return self


AnyTask = Annotated[LikelihoodTask | RewardTask | PreferenceTask, Field(discriminator="kind")]


class FeedbackSet(Section):
    """The verified examples that steer: ``rows`` of one kind, or several ``tasks``."""

    rows: Rows | None = None
    """Prompts with verified solutions, whose likelihood is the signal; or name ``tasks``."""
    tasks: dict[str, AnyTask] = {}
    """Several signals by name, weighed together; or give ``rows``."""
    batch_size: PositiveInt = 32
    """Rows in one feedback batch; with ``value.memory`` no more are needed."""
    batches: PositiveInt = 2
    """Batches whose gradients are taken at a meta step; g_down is their mean, and the less they
    agree the less it counts.
    """
    max_tokens: PositiveInt = 512
    """Longer feedback and evaluation rows are cut there, and counted."""
    loss_mean: Literal["token", "example"] = "token"
    """What the NLL of verified solutions is a mean over: all their tokens, or solutions, each with
    the mean over its tokens (eq. 38)."""
    conflict: Literal["sum", "project"] = "sum"
    """What becomes of tasks whose gradients point against each other: ``sum`` lets the weights
    decide, ``project`` first takes from each gradient what would harm another task."""
    scale: Literal["raw", "unit"] = "raw"
    """``unit`` divides each task's gradient by its norm before it is weighed: kinds of signal have
    no common unit.
    """

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        if (self.rows is None) == (not self.tasks):
            raise ValueError(
                "give either `rows` (verified solutions) or `tasks` (several signals by name)"
            )
        for name in self.tasks:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                raise ValueError(
                    f"the task name {name!r} goes into metric names: use letters, digits, _ . "
                    "and - alone"
                )
        return self

    def named(self) -> Mapping[str, LikelihoodTask | RewardTask | PreferenceTask]:
        """The tasks; a single set of rows is one of its own, ``feedback``."""
        if self.rows is None:
            return self.tasks
        return {SINGLE: LikelihoodTask(kind="likelihood", rows=self.rows)}

    def where(self, name: str) -> str:
        """The dotted key of a task's section."""
        return "data.feedback" if self.rows is not None else f"data.feedback.tasks.{name}"

    def batch_of(self, name: str) -> int:
        """Rows in one feedback batch of a task."""
        return self.named()[name].batch_size or self.batch_size


SINGLE = "feedback"
"""What a single set of rows is called beside tasks."""
