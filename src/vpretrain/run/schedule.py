"""The learning rate schedule."""

from __future__ import annotations

import math

from vpretrain.config.recipe import LearnerBase


def learning_rate(section: LearnerBase, progress: float) -> float:
    """Returns the rate of a linear warm-up followed by a cosine decay.

    The decay ends at ``final_fraction`` of the peak.

    Args:
        section: of the recipe.
        progress: fraction of the budget that is used, in [0, 1].
    """
    if progress < section.warmup_fraction:
        return section.learning_rate * progress / section.warmup_fraction
    rest = (progress - section.warmup_fraction) / max(1e-12, 1 - section.warmup_fraction)
    low = section.final_fraction
    return section.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * rest)) / 2)
