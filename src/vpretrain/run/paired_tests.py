"""Paired tests of arms against a baseline on the same held-out items.

Seeds show how much training varies; items show how much the test set does. A difference counts only
if it exceeds both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy.stats import binomtest

RESAMPLES = 4000
_AT_A_TIME = 200


@dataclass(frozen=True)
class ItemDifference:
    """Arm minus baseline, averaged over seeds and then over items.

    Args:
        difference: mean over items.
        ci95: percentile bootstrap interval over items.
        p: two-sided: McNemar's exact test for one seed of right and wrong answers, the bootstrap's
            otherwise.
    """

    difference: float
    ci95: tuple[float, float]
    p: float


def paired_items(
    arm: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], *, seed: int = 0
) -> ItemDifference:
    """Compares arm and baseline item by item.

    Args:
        arm: one row per seed, one figure per item (0 or 1 for right answers).
        baseline: the same seeds and items in the same order.
        seed: of the bootstrap.

    Raises:
        ValueError: the shapes differ, or there are no items.
    """
    a, b = numpy.asarray(arm, dtype=float), numpy.asarray(baseline, dtype=float)
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise ValueError(f"items of shape {a.shape} and {b.shape} cannot be paired")
    items = (a - b).mean(axis=0)
    means = _resampled_means(items, seed)
    low, high = (float(x) for x in numpy.quantile(means, [0.025, 0.975]))
    if len(a) == 1 and set(numpy.unique([a, b])) <= {0.0, 1.0}:
        p = mcnemar(int((items > 0).sum()), int((items < 0).sum()))
    else:
        below, above = int((means <= 0).sum()), int((means >= 0).sum())
        p = min(1.0, 2 * (min(below, above) + 1) / (RESAMPLES + 1))
    return ItemDifference(float(items.mean()), (low, high), p)


def _resampled_means(items: numpy.ndarray, seed: int) -> numpy.ndarray:
    """Returns the bootstrap means, ``[RESAMPLES]``.

    Drawn in chunks, because all draws at once are a matrix of draws by items.
    """
    generator = numpy.random.default_rng(seed)
    chances = numpy.full(len(items), 1 / len(items))
    means = []
    for start in range(0, RESAMPLES, _AT_A_TIME):
        count = min(_AT_A_TIME, RESAMPLES - start)
        means.append(generator.multinomial(len(items), chances, size=count) @ items / len(items))
    return numpy.concatenate(means)


def mcnemar(gained: int, lost: int) -> float:
    """Returns the p-value of the exact two-sided McNemar test.

    It compares the numbers of gained and lost items; 1 if both are 0.
    """
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
