"""The ``evaluate`` section of a language recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from vpretrain.config.recipe import Evaluate
from vpretrain.language.recipe.common import Answer


class LanguageEvaluate(Evaluate):
    """Which metrics are computed, and on which rows."""

    split: str = "test"
    """The reported split of ``data.evaluation``. Choose settings on dev and report once on test."""
    also: list[str] = []
    """Further splits of ``data.evaluation`` whose NLL is measured: abilities that steering should
    not harm."""
    batch_size: PositiveInt = 64
    answer: Answer | None = None
    """Regular expression, with one group, that finds the answer in a solution: greedy generations
    are scored by exact match of their answers (Pass@1). null measures the NLL alone."""
    new_tokens: PositiveInt = 64
    """Maximum number of generated tokens in a solution."""

    tasks: list[Literal["gsm8k", "math500", "math", "mmlu", "omega"]] = []
    """Benchmarks to score as well (needs the extra `eval`), read from ``data.root``. MBPP executes
    generated code and is available in `vpretrain evaluate` only."""
    task_rows: PositiveInt | None = None
    """Number of problems of each benchmark, taken from the start; null takes all."""
    task_tokens: PositiveInt | None = None
    """Maximum number of generated tokens in a benchmark completion; null uses the benchmark's own.
    """
