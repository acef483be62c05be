"""The verified examples that steer."""

from __future__ import annotations

from pydantic import PositiveInt

from vpretrain.language.recipe.rows import Rows
from vpretrain.recipe import Section


class FeedbackSet(Section):
    """The verified examples that steer."""

    rows: Rows
    batch_size: PositiveInt = 32
    """Rows in one feedback batch; with ``value.memory`` no more are needed."""
    batches: PositiveInt = 2
    """Batches heard at a meta step; g_down is their mean, and their agreement says how far to trust it."""
    max_tokens: PositiveInt = 512
    """Longer feedback and evaluation rows are cut there, and counted."""
