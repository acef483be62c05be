"""The ``data`` section: sources of the stream, feedback and evaluation rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import Section
from vpretrain.language.data.rows import SEPARATOR, SHORTEST_TAIL_TOKENS
from vpretrain.language.recipe.feedback import FeedbackSet
from vpretrain.language.recipe.rows import Rows, StreamRows, unset


class HoldOut(Section):
    """Rows of a source that never enter the stream, chosen by a hash of their content."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Fraction of the source's rows that is held out."""
    seed: NonNegativeInt = 0
    """Seed of the hash; another seed holds out other rows."""


class Source(Section):
    """One source of the stream."""

    name: str
    weight: PositiveFloat = 1.0
    """Share of the stream's documents (not tokens), relative to the other sources' weights."""
    rows: StreamRows
    max_documents: PositiveInt | None = Field(default=None, exclude_if=unset)
    """Maximum number of documents, taken from the start (each chunk of a long text counts as one);
    null takes all."""
    held_out: HoldOut | None = Field(default=None, exclude_if=unset)
    """Rows kept out of the stream, which feedback and evaluation can read with ``kind: held_out``;
    null keeps out none."""


class Data(Section):
    """Text for the stream, the feedback and the evaluation."""

    root: Path = Path()
    """Folder that relative paths start from."""
    window_tokens: PositiveInt
    """Tokens in a packed row of the stream."""
    batch_size: PositiveInt
    """Packed rows in a batch, over all ranks."""
    packing: bool = True
    """Whether a row is filled with several documents. Set it to false (one document a row) for
    learners that carry a state along the row, such as linear attention, convolutions or Mamba."""
    shortest_chunk_tokens: Annotated[int, Field(ge=2)] = SHORTEST_TAIL_TOKENS
    """Raw text longer than the window is cut into chunks; a last chunk shorter than this is left
    out and counted."""
    separator: str = SEPARATOR
    """Text between prompt and solution in stream, feedback, evaluation and generation. Rows with a
    ``format`` use the format's own."""
    instruction: str | None = None
    """Template around every prompt of tables without a ``format``, in stream, feedback and
    evaluation alike: "Solve the problem.\\n\\n{prompt}"."""
    parse_special_tokens: bool = False
    """Whether control tokens written in the rows (``<|endoftext|>``) are read as such; false
    tokenises them as ordinary text."""
    stream: list[Source] = Field(min_length=1)
    feedback: FeedbackSet
    evaluation: dict[str, Rows]
    """Held-out rows by split; ``evaluate.split`` names the split that is reported."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Handling of unusable rows: ``stop`` ends with an error, ``skip`` leaves them out, counts them
    and reports them."""

    on_duplicate_row: Literal["keep", "skip"] = "keep"
    """Handling of rows that exactly repeat an earlier row of their source: ``keep`` only counts
    them, ``skip`` leaves them out too. Generated rows are not checked."""

    @model_validator(mode="after")
    def _has_the_prompt(self) -> Self:
        parts = self.instruction and self.instruction.replace("{prompt}", "", 1)
        if parts is not None and (parts == self.instruction or "{" in parts):
            raise ValueError("`instruction` holds {prompt} once, and no other field")
        return self
