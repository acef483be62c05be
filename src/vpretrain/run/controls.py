"""Controls of the feedback, for every modality: noise in the place of the feedback set."""

from __future__ import annotations

from vpretrain.config.arms import Control
from vpretrain.config.recipe import Value
from vpretrain.method.feedback import EMAFeedback, RandomDirection
from vpretrain.method.lookahead import Lookahead
from vpretrain.method.roles import AlignmentName, Feedback


def controlled(
    feedback: Feedback, control: Control, value: Value, *, alignment: AlignmentName, seed: int
) -> Feedback:
    """What the designer is given of a feedback set.

    ``shuffled`` is a matter of labels, which whoever makes the feedback mixes
    (:func:`shuffles_labels`).

    Args:
        feedback: the real one.
        control: what takes its place.
        value: its ``memory`` is that of the running average over meta steps; 0: none.
        alignment: what values are taken by; under ``lookahead`` nothing is averaged here.
        seed: of random directions.
    """
    if control in ("random", "fixed_direction"):
        feedback = RandomDirection(feedback, seed, fixed=control == "fixed_direction")
    averaged = value.memory > 0 and alignment != "lookahead"
    return EMAFeedback(feedback, value.memory) if averaged else feedback


def looking_ahead(
    feedback: Feedback, value: Value, *, alignment: AlignmentName, batches: int
) -> Feedback:
    """The feedback itself, or under ``lookahead`` the way to where fine-tuning on it leads.

    Args:
        feedback: all of it.
        value: how far is looked ahead.
        alignment: what values are taken by.
        batches: feedback batches at a time.
    """
    if alignment != "lookahead":
        return feedback
    return Lookahead(
        feedback,
        batches=batches,
        steps=value.lookahead_steps,
        learning_rate=value.lookahead_learning_rate,
        memory=value.memory,
    )


def shuffles_labels(control: Control) -> bool:
    """Whether the feedback is to be made with the labels of other items."""
    return control == "shuffled"
