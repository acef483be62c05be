"""What arms of every modality have in common: the controls that put noise in the place of the
feedback.
"""

from __future__ import annotations

from vpretrain.config.recipe import Recipe
from vpretrain.method.feedback import EMAFeedback, RandomDirection
from vpretrain.method.roles import Feedback


def heard(recipe: Recipe, feedback: Feedback) -> Feedback:
    """What the designer of the recipe's arm hears of the feedback set: a control's noise in its
    place, and its memory.
    """
    if recipe.arm in ("random_feedback", "fixed_random_direction"):
        feedback = RandomDirection(
            feedback, recipe.seed, fixed=recipe.arm == "fixed_random_direction"
        )
    return EMAFeedback(feedback, recipe.value.memory) if recipe.value.memory else feedback
