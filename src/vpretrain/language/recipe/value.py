"""How the value of a task is measured: what language adds."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from vpretrain.config.recipe import Section, Value
from vpretrain.language.recipe.rows import unset


class MetaBatch(Section):
    """Unlabeled batches of the designer's own, from the sources of the stream in an order of their
    own."""

    batch_size: PositiveInt
    """Rows, over all ranks."""
    window_tokens: PositiveInt
    """Length of a row; documents that are longer are cut there."""
    per_domain: bool = False
    """Whether there are so many rows of every domain that ``sources`` of the feedback's tasks name:
    the value is then the mean of one alignment a domain, stream batch with feedback batch (eq.
    44-46). Otherwise a domain counts by its share of a mixed batch, and a cosine is that of all."""
    seed: NonNegativeInt = 0
    """Of its order, beside the run's seed."""


class LanguageValue(Value):
    """How the value of a task is measured, and on which batch."""

    meta_batch: MetaBatch | None = Field(default=None, exclude_if=unset)
    """What the designer learns from at a meta step; null: the learner's batch (of several that make
    a step, the first)."""
