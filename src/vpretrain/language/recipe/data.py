"""Where text comes from: sources of the stream, feedback, held-out rows."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from vpretrain.language.recipe.feedback import FeedbackSet
from vpretrain.language.recipe.rows import Rows
from vpretrain.recipe import Section


class Source(Section):
    """One source of the stream."""

    name: str
    weight: PositiveFloat = 1.0
    """Share of the stream's documents, relative to the other sources."""
    rows: Rows


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
