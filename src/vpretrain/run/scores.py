"""Scores on held-out rows, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vpretrain.system.errors import Fault

MEANINGS = {
    "nll": "loss in nats a token",
    "pass@1": "share of problems solved",
    "miou": "mean IoU, the overlap of predicted and true areas",
    "probe_cross_entropy": "loss of the linear probe that is trained on frozen features",
    "depth_rmse": "root of the mean squared error of depth",
    "depth_abs_rel": "mean relative error of depth",
    "depth_delta_1": "share of pixels whose depth is within a factor of 1.25",
    "accuracy": "share of held-out answers that are right",
    "knn": "share that the nearest neighbours get right",
}
"""Descriptions of metrics, by the last part of their names."""


@dataclass(frozen=True)
class Score:
    """One metric on held-out rows.

    Args:
        value: the metric's value.
        stderr: its standard error over rows.
        n: number of rows (or tokens, if the metric is a mean over tokens).
        higher_is_better: whether higher values are better.
        items: one value per row, in the rows' order, with mean ``value``; paired in comparisons.
    """

    value: float
    stderr: float
    n: int
    higher_is_better: bool
    items: tuple[float, ...] = ()


def score(items: Tensor, *, higher_is_better: bool) -> Score:
    """Returns the score whose value is the mean of ``items``, ``[n]``, one figure per item.

    The mean may be non-finite, see :func:`check_finite`.
    """
    values = tuple(float(item) for item in items)
    mean = sum(values) / len(values)
    stderr = (mean_stderr(values) or 0.0) if math.isfinite(mean) else math.nan
    return Score(mean, stderr, len(values), higher_is_better, values)


def check_finite(scores: Mapping[str, Score], when: str, fix: str) -> None:
    """Raises Fault if a score is not finite; the message says ``when``, and the ``fix``."""
    if broken := [name for name, each in scores.items() if not math.isfinite(each.value)]:
        raise Fault(f"{when} {', '.join(broken)} is not finite; {fix}")


STEP0_FIX = "the model's weights, or rows of the held-out set, are unusable: take others"
"""Fix for non-finite scores of an untouched checkpoint."""


def mean_stderr(values: Sequence[float]) -> float | None:
    """Returns the standard error of the mean, std / sqrt(n); None for a single value.

    Raises:
        ValueError: see :func:`moments`.
    """
    _, std = moments(values)
    return None if std is None else std / math.sqrt(len(values))


def moments(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns mean and standard deviation (with n - 1; None for a single value).

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    if len(values) == 0 or not all(map(math.isfinite, values)):
        raise ValueError(f"accepted: one or more finite values; got {list(values)}")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
