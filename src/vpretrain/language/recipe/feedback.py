"""The verified examples that steer: one set of rows, or several tasks of different kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import PositiveInt, model_validator

from vpretrain.config.recipe import Section
from vpretrain.language.feedback.signals import SIGNALS, TASK, Task, task_of
from vpretrain.language.recipe.rows import Rows


class FeedbackSet(Section):
    """The verified examples that steer: ``rows`` of one kind, or several ``tasks``."""

    rows: Rows | None = None
    """Prompts with verified solutions, whose likelihood is the signal; or name ``tasks``."""
    tasks: dict[str, Annotated[Task, TASK]] = {}
    """Several signals by name, weighed together; or give ``rows``."""
    batch_size: PositiveInt = 32
    """Rows in one feedback batch; with ``value.memory`` no more are needed."""
    batches: PositiveInt = 2
    """Batches whose gradients are taken at a meta step; g_down is their mean, and the less they
    agree the less it counts."""
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
    no common unit."""

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

    def named(self) -> Mapping[str, Task]:
        """The tasks; a single set of rows is one of its own, ``feedback``."""
        if self.rows is None:
            return self.tasks
        return {SINGLE: task_of(SIGNALS.kinds["likelihood"])(rows=self.rows)}

    def where(self, name: str) -> str:
        """The dotted key of a task's section."""
        return "data.feedback" if self.rows is not None else f"data.feedback.tasks.{name}"

    def batch_of(self, name: str) -> int:
        """Rows in one feedback batch of a task."""
        return self.named()[name].batch_size or self.batch_size


SINGLE = "feedback"
"""What a single set of rows is called beside tasks."""
