"""Controls of the feedback, for every modality: noise in the place of the feedback set."""

from __future__ import annotations

from vpretrain.config.arms import Control
from vpretrain.method.feedback import EMAFeedback, RandomDirection, Reversed
from vpretrain.method.roles import Feedback


def controlled(feedback: Feedback, control: Control, *, memory: float, seed: int) -> Feedback:
    """What the designer is given of a feedback set.

    ``shuffled`` is a matter of labels, which whoever makes the feedback mixes
    (:func:`shuffles_labels`).

    Args:
        feedback: the real one.
        control: what takes its place.
        memory: of the running average over meta steps, in [0, 1); 0: none.
        seed: of random directions.
    """
    if control == "reversed":
        feedback = Reversed(feedback)
    elif control in ("random", "fixed_direction"):
        feedback = RandomDirection(feedback, seed, fixed=control == "fixed_direction")
    return EMAFeedback(feedback, memory) if memory else feedback


def shuffles_labels(control: Control) -> bool:
    """Whether the feedback is to be made with the labels of other items."""
    return control == "shuffled"
