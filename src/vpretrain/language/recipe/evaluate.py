"""What is measured, on which rows."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import PositiveInt, field_validator

from vpretrain.recipe import Evaluate


class LanguageEvaluate(Evaluate):
    """What is measured, on which rows."""

    split: str = "test"
    """One of ``data.evaluation``: settings are chosen on dev and reported once on test."""
    also: list[str] = []
    """Others of ``data.evaluation`` whose NLL is measured beside it: abilities that steering should not cost."""
    batch_size: PositiveInt = 64
    answer: str | None = None
    """Regular expression with one group that finds the answer in a solution (its last match counts). With it, greedy
    generation is scored by exact match (Pass@1); null measures NLL alone."""
    new_tokens: PositiveInt = 64
    """Longest generated solution."""

    tasks: list[Literal["gsm8k", "math500", "mmlu", "omega"]] = []
    """Benchmarks that are scored beside it (the extra `eval`), read from ``data.root``. MBPP runs what the model wrote and is
    left to `vpretrain evaluate`."""
    task_rows: PositiveInt | None = None
    """The first so many problems of each; null takes all."""
    task_tokens: PositiveInt | None = None
    """Longest completion; null leaves it to the task."""

    @field_validator("answer")
    @classmethod
    def _is_a_pattern(cls, answer: str | None) -> str | None:
        if answer is not None:
            try:
                groups = re.compile(answer).groups
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
            if groups != 1:
                raise ValueError("the expression needs exactly one group, around the answer")
        return answer
