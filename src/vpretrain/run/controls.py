"""Feedback controls, for every modality: noise in place of the feedback set."""

from __future__ import annotations

from collections.abc import Collection

from vpretrain.config.arms import Control
from vpretrain.method.feedback import EMAFeedback, RandomDirection, Reversed
from vpretrain.method.roles import Feedback
from vpretrain.system.sampling import seed_of


def controlled(feedback: Feedback, control: Control, *, memory: float, seed: int) -> Feedback:
    """Returns the designer's feedback: the real one, a control, or a running average of it.

    ``shuffled`` is not handled here, because it changes labels: the feedback must be built with
    shuffled labels (:func:`shuffles_labels`).

    Args:
        feedback: the real feedback.
        control: what replaces it.
        memory: of the running average over meta steps, in [0, 1); 0: none.
        seed: seeds random directions.
    """
    if control == "reversed":
        feedback = Reversed(feedback)
    elif control in ("random", "fixed_direction"):
        feedback = RandomDirection(feedback, seed, fixed=control == "fixed_direction")
    return EMAFeedback(feedback, memory) if memory else feedback


def seed_of_task(seed: int, task: str, tasks: Collection[str]) -> int:
    """Returns the seed of a feedback task's random directions.

    Several tasks have independent ones, whose seeds come from their names; a single task has the
    run's.

    Args:
        seed: of the run.
        task: its name.
        tasks: the names of all tasks.
    """
    return seed if len(tasks) == 1 else seed_of(f"{seed}/feedback/{task}")


def shuffles_labels(control: Control) -> bool:
    """Returns whether the feedback must be built with the labels of other items."""
    return control == "shuffled"
