"""What is measured, on which rows."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from vpretrain.config.recipe import Evaluate
from vpretrain.language.recipe.common import Answer


class LanguageEvaluate(Evaluate):
    """What is measured, on which rows."""

    split: str = "test"
    """One of ``data.evaluation``: settings are chosen on dev and reported once on test."""
    also: list[str] = []
    """Others of ``data.evaluation`` whose NLL is measured beside it: abilities that steering should
    not cost."""
    batch_size: PositiveInt = 64
    answer: Answer | None = None
    """With it, greedy generation is scored by exact match (Pass@1); null measures NLL alone."""
    new_tokens: PositiveInt = 64
    """Longest generated solution."""

    tasks: list[Literal["gsm8k", "math500", "math", "mmlu", "omega"]] = []
    """Benchmarks that are scored beside it (the extra `eval`), read from ``data.root``. MBPP runs
    what the model wrote and is left to `vpretrain evaluate`."""
    task_rows: PositiveInt | None = None
    """The first so many problems of each; null takes all."""
    task_tokens: PositiveInt | None = None
    """Longest completion; null leaves it to the task."""
