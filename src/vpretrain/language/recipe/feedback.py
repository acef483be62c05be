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
    """Prompts with verified solutions, whose likelihood is the signal. Give this or ``tasks``."""
    tasks: dict[str, Annotated[Task, TASK]] = {}
    """Several feedback signals by name, combined by their weights. Give this or ``rows``."""
    batch_size: PositiveInt = 32
    """Rows in one feedback batch; with ``value.memory`` there is no need for a larger one."""
    batches: PositiveInt = 2
    """Feedback batches at a meta step. g_down is the mean of their gradients, and it counts less
    the less they agree."""
    max_tokens: PositiveInt = 512
    """Maximum length of feedback and evaluation rows; longer rows are cut and counted."""
    loss_mean: Literal["token", "example"] = "token"
    """Mean of the NLL of verified solutions: ``token`` averages over all their tokens, ``example``
    over solutions, each with the mean over its own tokens (eq. 38)."""
    conflict: Literal["sum", "project"] = "sum"
    """Handling of tasks whose gradients conflict: ``sum`` adds them by weight, ``project`` first
    removes from each gradient the component that would harm another task."""
    scale: Literal["raw", "unit"] = "raw"
    """``unit`` divides each task's gradient by its norm before weighting, since different kinds of
    signal have no common unit; ``raw`` does not."""

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
        """The tasks by name; a single set of rows is one task named ``feedback``."""
        if self.rows is None:
            return self.tasks
        return {SINGLE: task_of(SIGNALS.kinds["likelihood"])(rows=self.rows)}

    def where(self, name: str) -> str:
        """The dotted recipe key of a task's section."""
        return "data.feedback" if self.rows is not None else f"data.feedback.tasks.{name}"

    def batch_of(self, name: str) -> int:
        """Rows in one feedback batch of a task."""
        return self.named()[name].batch_size or self.batch_size


SINGLE = "feedback"
"""Task name of a single set of rows."""
