"""Statistics of arms paired with a baseline over seeds: intervals, Holm's correction, verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from scipy.special import stdtr, stdtrit

from vpretrain.run.scores import moments

LEVEL = 0.05

Verdict = Literal["better", "worse", "undecided"]


class Summary(TypedDict):
    """Mean and standard deviation of one arm and metric over seeds.

    ``std`` divides by n - 1, and is None for a single seed.
    """

    mean: float
    std: float | None
    n: int


class Paired(TypedDict):
    """Comparison of one arm and metric with the baseline.

    Interval and p-value are None if the number of seeds does not allow them.
    """

    difference: float
    ci95: tuple[float, float] | None
    p_holm: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline.

    Args:
        difference: mean over the pairs.
        ci95: its 95% interval; None if there is none.
        p: two-sided p-value of "no difference", in [0, 1]; None if there is none.
    """

    difference: float
    ci95: tuple[float, float] | None
    p: float | None


def summary(values: Sequence[float]) -> Summary:
    """Returns mean, standard deviation and number of ``values``.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    mean, std = moments(values)
    return {"mean": mean, "std": std, "n": len(values)}


def paired_difference(arm: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Returns the mean difference of pairs (one for each seed) with the paired t interval and test.

    Three cases have no t interval:

    * one pair: no interval and no p-value;
    * every pair equal: the difference is exactly 0, the interval (0, 0), p = 1;
    * every pair differs by the same amount: the seeds show no spread, and a t test would call even
      two of them certain. Only the common sign counts (sign test): p = 2 ** (1 - n). The interval,
      which then covers the median with 1 - p, is that amount itself for n >= 6, and None below.

    "Equal" and "the same" mean up to the rounding of float64 at the size of the values.

    Args:
        arm: one finite value for each seed.
        baseline: the values of the same seeds in the same order.

    Raises:
        ValueError: the lengths differ, there are no pairs, or a value is not finite.
    """
    if len(arm) != len(baseline):
        raise ValueError(
            f"{len(arm)} values of the arm and {len(baseline)} of the baseline cannot be paired"
        )
    moments(baseline)
    moments(arm)
    n = len(arm)
    differences = [a - b for a, b in zip(arm, baseline, strict=True)]
    rounding = 8 * math.ulp(max(map(abs, [*arm, *baseline])))
    mean, std = moments(differences)
    if std is None:
        return Difference(mean, None, None)
    if max(map(abs, differences)) <= rounding:
        return Difference(0.0, (0.0, 0.0), 1.0)
    if max(differences) - min(differences) <= rounding:
        p = 2.0 ** (1 - n)
        return Difference(mean, (min(differences), max(differences)) if p < LEVEL else None, p)
    error = std / math.sqrt(n)
    reach = float(stdtrit(n - 1, 1 - LEVEL / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, (mean - reach, mean + reach), min(1.0, p))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Returns p-values adjusted for multiple comparisons by Holm's step-down correction.

    The k-th smallest of m (k from 1) becomes (m - k + 1) p, at least as large as the adjusted
    smaller ones, and at most 1. Calling those below 0.05 significant then has a chance of at most
    5% of any false finding, however the tests depend on each other.

    Raises:
        ValueError: a p-value is outside [0, 1].
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"the p-value of {name} is {p}; accepted: 0 to 1")
    adjusted: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = min(1.0, max(least, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def verdict(
    difference: float,
    ci95: tuple[float, float] | None,
    p_holm: float | None,
    *,
    higher_is_better: bool,
) -> Verdict:
    """Returns ``better``, ``worse`` or ``undecided``.

    A decision needs a 95% interval that excludes zero, and p_holm < 0.05.
    """
    if ci95 is None or p_holm is None or p_holm >= LEVEL or ci95[0] <= 0 <= ci95[1]:
        return "undecided"
    return "better" if (difference > 0) == higher_is_better else "worse"


NOT_BY_ITEMS = "seeds differ by more than chance, held-out items do not bear it out"
"""Explanation of a difference that is :func:`decided_by_seeds_alone`."""


def decided_by_seeds_alone(verdict: Verdict, p_holm: float | None, *, items: bool) -> bool:
    """Returns whether a difference is significant over seeds but undecided over held-out items.

    Args:
        verdict: of the difference.
        p_holm: over seeds.
        items: whether its items were paired.
    """
    return verdict == "undecided" and items and p_holm is not None and p_holm < LEVEL


def paired_table(
    runs: Sequence[Mapping[str, Any]], metrics: Mapping[str, Mapping[str, Any]], baseline: str
) -> tuple[dict[str, dict[str, Summary]], dict[str, dict[str, Paired]]]:
    """Returns ``summary`` and ``paired`` of compare.json.

    Each arm is summarised over its own seeds and paired over the seeds it shares with the baseline.
    Holm's correction runs over the arms, for each metric separately: choose the leading metric in
    advance. If an arm lacks a metric or shares no seed with the baseline (an interrupted
    comparison), the entry is left out.

    Args:
        runs: ``{arm, seed, final: {metric: value}}`` each; other keys are ignored.
        metrics: ``{name: {higher_is_better: bool}}``; a run's other metrics are ignored.
        baseline: the arm that the others are compared with.

    Raises:
        ValueError: the baseline has no run, an arm has two runs of one seed, or a value is not
            finite.
    """
    arms = _by_arm_and_seed(runs, metrics)
    if baseline not in arms:
        there = ", ".join(arms) or "no arm"
        raise ValueError(f"the baseline {baseline} has no run; there are runs of: {there}")
    summaries: dict[str, dict[str, Summary]] = {arm: {} for arm in arms}
    paired: dict[str, dict[str, Paired]] = {arm: {} for arm in arms if arm != baseline}
    for metric, meaning in metrics.items():
        values = {
            arm: {seed: final[metric] for seed, final in seeds.items() if metric in final}
            for arm, seeds in arms.items()
        }
        differences: dict[str, Difference] = {}
        for arm, by_seed in values.items():
            if by_seed:
                summaries[arm][metric] = summary(list(by_seed.values()))
            shared = [seed for seed in by_seed if seed in values[baseline]]
            if shared and arm != baseline:
                pairs = [(by_seed[seed], values[baseline][seed]) for seed in shared]
                differences[arm] = paired_difference(*zip(*pairs, strict=True))
        p_values = {arm: each.p for arm, each in differences.items() if each.p is not None}
        corrected, higher = holm(p_values), meaning["higher_is_better"]
        for arm, each in differences.items():
            p = corrected.get(arm)
            paired[arm][metric] = {
                "difference": each.difference,
                "ci95": each.ci95,
                "p_holm": p,
                "verdict": verdict(each.difference, each.ci95, p, higher_is_better=higher),
            }
    return summaries, paired


def _by_arm_and_seed(
    runs: Sequence[Mapping[str, Any]], metrics: Mapping[str, object]
) -> dict[str, dict[int, Mapping[str, float]]]:
    arms: dict[str, dict[int, Mapping[str, float]]] = {}
    for run in runs:
        arm, seed, final = run["arm"], run["seed"], run["final"]
        seeds = arms.setdefault(arm, {})
        if seed in seeds:
            raise ValueError(f"arm {arm} has two runs of seed {seed}; pairs need one of each")
        for metric in metrics:
            if not math.isfinite(value := final.get(metric, 0.0)):
                message = f"arm {arm}, seed {seed}: {metric} is {value}"
                raise ValueError(f"{message}; accepted: finite numbers")
        seeds[seed] = final
    return arms
