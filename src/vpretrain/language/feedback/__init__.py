"""Feedback on language: small sets of verified rows, and the gradient that each kind of signal
sends (eq. 7).

Each kind is declared in a file of this folder (``signals``): ``likelihood`` (verified solutions),
``rewards`` (answers that a checker scores) and ``preferences`` (chosen over rejected); ``tasks``
makes them from a recipe. Nothing here reaches the learner's optimizer.
"""

from vpretrain.language.feedback.likelihood import Likelihood, parted, shuffled
from vpretrain.language.feedback.preferences import Preferences
from vpretrain.language.feedback.rewards import Rewards, Sampling

__all__ = ["Likelihood", "Preferences", "Rewards", "Sampling", "parted", "shuffled"]
