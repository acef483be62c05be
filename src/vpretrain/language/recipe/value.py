"""The ``value`` section of a language recipe."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from vpretrain.config.recipe import Section, Value
from vpretrain.language.recipe.rows import unset


class MetaBatch(Section):
    """Unlabeled batches for the designer alone, drawn from the sources of the stream in a separate
    order."""

    batch_size: PositiveInt
    """Rows in a batch, over all ranks (with ``per_domain``, of each domain)."""
    window_tokens: PositiveInt
    """Maximum length of a row; longer documents are cut."""
    per_domain: bool = False
    """Whether to draw a batch for every domain (the ``sources`` of a feedback task) and average one
    alignment per domain, stream batch with feedback batch (eq. 44-46). If false, one alignment is
    taken on a mixed batch, where a domain counts by its share of the rows."""
    seed: NonNegativeInt = 0
    """Seed of the order of these batches, combined with the run's seed."""


class LanguageValue(Value):
    """How the value of a task is measured, and on which batch."""

    meta_batch: MetaBatch | None = Field(default=None, exclude_if=unset)
    """Batches that the designer is trained on at meta steps; null uses the learner's batch (the
    first one under gradient accumulation)."""
