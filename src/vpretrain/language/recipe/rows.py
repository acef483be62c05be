"""Rows of text: files and generators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vpretrain.language.recipe.common import Share
from vpretrain.recipe import Section


class JsonLines(Section):
    """Rows of a local JSONL file: raw text, or prompts (masked) with solutions."""

    kind: Literal["jsonl"]
    path: Path
    """Relative to ``data.root``."""
    text: str | None = None
    """Column of raw text; every token of it is predicted."""
    prompt: str | None = None
    """Column of the prompt, which is never predicted."""
    solution: str | None = None
    """Column of the solution."""
    skip_rows: NonNegativeInt = 0
    """Rows left out at the beginning (the feedback set, say)."""
    rows: PositiveInt | None = None
    """Rows taken after those; null takes all."""
    corrupt_digits: Share = 0.0
    """Share of rows in whose solution every number gets one wrong digit: planted noise, for measuring."""

    @model_validator(mode="after")
    def _has_columns(self) -> Self:
        if (self.text is None) == (self.prompt is None and self.solution is None):
            raise ValueError("name the column of raw `text`, or the columns of `prompt` and `solution`")
        if self.text is None and (self.prompt is None or self.solution is None):
            raise ValueError("`prompt` and `solution` go together; name both columns")
        return self


class WordProblems(Section):
    """Generated arithmetic word problems with solutions (the embedded default)."""

    kind: Literal["word_problems"]
    split: Literal["stream", "feedback", "dev", "test"] = "stream"
    """Disjoint by operands; all but ``stream`` are clean."""
    rows: PositiveInt
    seed: NonNegativeInt = 0
    noise_share: Share = 0.0
    """Share of rows, among those where it is possible, with a systematic error: 0.55 makes the wrong rule the rule."""
    random_share: Share = 0.0
    """Share of rows with a random wrong result."""
    forms: list[Literal["story", "question", "drill"]] = ["story", "question", "drill"]
    """The forms that problems are shown in."""
    operations: list[Literal["+", "-"]] = ["+", "-"]
    """The operations that problems ask for."""


class Chatter(Section):
    """Generated short sentences that have nothing to do with the feedback."""

    kind: Literal["chatter"]
    rows: PositiveInt
    seed: NonNegativeInt = 0


Rows = Annotated[JsonLines | WordProblems | Chatter, Field(discriminator="kind")]
