"""Where text comes from: sources of the stream, feedback, held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import Section
from vpretrain.language.data.rows import SEPARATOR, SHORTEST_TAIL_TOKENS
from vpretrain.language.recipe.feedback import FeedbackSet
from vpretrain.language.recipe.rows import Rows, StreamRows, unset


class HoldOut(Section):
    """Rows that never come into the stream, chosen by a hash of their content."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Of the source's rows."""
    seed: NonNegativeInt = 0
    """Another seed holds out others."""


class Source(Section):
    """One source of the stream."""

    name: str
    weight: PositiveFloat = 1.0
    """Share of the stream's documents, relative to the other sources."""
    rows: StreamRows
    max_documents: PositiveInt | None = Field(default=None, exclude_if=unset)
    """The most documents that are taken (chunks of a long text count one each), the first ones;
    null takes all."""
    held_out: HoldOut | None = Field(default=None, exclude_if=unset)
    """Rows kept out of the stream, for ``kind: held_out`` of feedback and evaluation; null keeps
    out none."""


class Data(Section):
    """Where text comes from."""

    root: Path = Path()
    """Folder that relative paths start from."""
    window_tokens: PositiveInt
    """Length of a packed row of the stream."""
    batch_size: PositiveInt
    """Packed rows in a batch, over all ranks."""
    packing: bool = True
    """Whether a row holds as many documents as fit it; false: one, for learners that carry a state
    along the row (linear attention, convolutions, Mamba) and would see the documents before it."""
    shortest_chunk_tokens: Annotated[int, Field(ge=2)] = SHORTEST_TAIL_TOKENS
    """A raw text longer than the window is chunked; its rest is left out, and counted, if it is
    shorter than this."""
    separator: str = SEPARATOR
    """What stands between prompt and solution, in stream, feedback, evaluation and generation. A
    format has its own."""
    instruction: str | None = None
    """Written around every prompt of a table that has no format, the same in stream, feedback and
    evaluation: "Solve the problem.\\n\\n{prompt}"."""
    parse_special_tokens: bool = False
    """Read control tokens (``<|endoftext|>``) that stand in rows as such; false keeps them as text.
    """
    stream: list[Source] = Field(min_length=1)
    feedback: FeedbackSet
    evaluation: dict[str, Rows]
    """Held-out rows by split; ``evaluate.split`` names the one that is reported."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What becomes of rows that cannot be used: an error, or they are left out, counted and named.
    """

    on_duplicate_row: Literal["keep", "skip"] = "keep"
    """What becomes of rows of a source that are exactly an earlier one of it: counted, or left out
    and counted; made-up ones are not looked at."""

    @model_validator(mode="after")
    def _has_the_prompt(self) -> Self:
        parts = self.instruction and self.instruction.replace("{prompt}", "", 1)
        if parts is not None and (parts == self.instruction or "{" in parts):
            raise ValueError("`instruction` holds {prompt} once, and no other field")
        return self
