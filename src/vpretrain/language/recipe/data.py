"""Where text comes from: rows, sources, the feedback set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

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


class Source(Section):
    """One source of the stream."""

    name: str
    weight: PositiveFloat = 1.0
    """Share of the stream's documents, relative to the other sources."""
    rows: Rows


class FeedbackSet(Section):
    """The verified examples that steer."""

    rows: Rows
    batch_size: PositiveInt = 32
    """Rows in one feedback batch; with ``value.memory`` no more are needed."""
    batches: PositiveInt = 2
    """Batches heard at a meta step; g_down is their mean, and their agreement says how far to trust it."""
    max_tokens: PositiveInt = 512
    """Longer feedback and evaluation rows are cut there, and counted."""


class Data(Section):
    """Where text comes from."""

    root: Path = Path()
    """Folder that relative paths start from."""
    window_tokens: PositiveInt
    """Length of a packed row of the stream."""
    batch_size: PositiveInt
    """Packed rows in a batch."""
    stream: list[Source] = Field(min_length=1)
    feedback: FeedbackSet
    evaluation: dict[str, Rows]
    """Held-out rows by split; ``evaluate.split`` names the one that is reported."""
