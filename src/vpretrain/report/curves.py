"""Computes curves from runs, and figures such as tokens until a score, and time by part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from vpretrain.report.folders import Run, Section

Axis = Literal["step", "tokens", "flops", "seconds"]
Point = tuple[float, float]

MOST_POINTS = 40  # per line; more than a reader can distinguish in a small chart


def logged(run: Run, metric: str) -> dict[float, dict[str, float]]:
    """Returns the run's records that hold a finite value of the metric, by step."""
    return {
        record["step"]: record
        for record in run.records
        if metric in record and math.isfinite(record[metric])
    }


def evaluated(run: Run, metric: str) -> dict[float, dict[str, float]]:
    """Returns step 0, the evaluations during the run, and the final one, by step.

    Empty if there was none during the run.
    """
    records = logged(run, metric)
    if not records:
        return {}
    if metric in run.step0:
        start = dict.fromkeys(("step", "tokens", "flops", "seconds"), 0.0)
        records = {0.0: start | {metric: run.step0[metric]}, **records}
    if metric in run.entry.final:
        end, step = run.entry, float(run.entry.steps)
        used = {"tokens": float(end.tokens_or_images), "flops": end.flops or 0.0}
        records[step] = {"step": step, **used, "seconds": end.seconds, metric: end.final[metric]}
    return {step: record for step, record in records.items() if math.isfinite(record[metric])}


def points(records: dict[float, dict[str, float]], axis: Axis, metric: str) -> list[Point]:
    """Returns the line of one run."""
    return [(records[step][axis], records[step][metric]) for step in sorted(records)]


def mean_points(
    runs: Sequence[dict[float, dict[str, float]]], axis: Axis, metric: str
) -> list[Point]:
    """Returns the mean over runs, step by step, at the steps that all of them have."""
    logs = [records for records in runs if records]
    shared = set.intersection(*(set(records) for records in logs)) if logs else set()
    return [
        (
            fmean(records[step][axis] for records in logs),
            fmean(records[step][metric] for records in logs),
        )
        for step in sorted(shared)
    ]


def width(longest: int) -> int:
    """Returns the bin size that leaves at most :data:`MOST_POINTS` points of a line."""
    return math.ceil(longest / MOST_POINTS) or 1


def binned(line: Sequence[Point], size: int) -> list[Point]:
    """Returns means over ``size`` neighbours each; the last bin may hold fewer."""
    parts = [line[start : start + size] for start in range(0, len(line), size)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


@dataclass(frozen=True)
class Reach:
    """When an arm reached the baseline's final score.

    Args:
        tokens: first crossing of its mean curve, interpolated linearly between evaluations; None if
            it never did.
        fraction: ``tokens`` as a fraction of the baseline's total; None if ``tokens`` is.
        seeds: number of its seeds, out of ``of``, that reached the score individually.
    """

    tokens: float | None
    fraction: float | None
    seeds: int
    of: int


def reaches(section: Section, metric: str) -> tuple[float, dict[str, Reach]] | str:
    """Returns the baseline's mean final score, and when each arm reached it.

    If this is undefined, returns a sentence that says why.
    """
    higher = section.metrics.get(metric)
    baseline = section.arms[0]
    if higher is None or metric not in section.summaries.get(baseline, {}):
        return "the baseline has no final score, or it is not known whether more is better."
    target = section.summaries[baseline][metric].mean
    start = section.step0.get(metric)
    if start is not None and _at(start.value, target, higher):
        return (
            "the baseline ended no better than the untouched checkpoint, so there is no score "
            "to reach."
        )
    by_arm: dict[str, Reach] = {}
    whole = fmean(run.entry.tokens_or_images for run in section.of(baseline))
    for arm in section.arms:
        runs = [records for run in section.of(arm) if (records := evaluated(run, metric))]
        if not runs:
            continue
        lines = [points(records, "tokens", metric) for records in runs]
        mean, ends = mean_points(runs, "tokens", metric), [line[-1] for line in lines]
        end = (fmean(x for x, _ in ends), fmean(y for _, y in ends))
        if not mean or end[0] > mean[-1][0]:  # runs of equal seconds end after different steps
            mean.append(end)
        tokens = crossing(mean, target, higher)
        each = [crossing(line, target, higher) for line in lines]
        reached = sum(at is not None for at in each)
        fraction = None if tokens is None or not whole else tokens / whole
        by_arm[arm] = Reach(tokens, fraction, reached, len(runs))
    return (target, by_arm) if by_arm else "it was not evaluated during the runs."


def crossing(line: Sequence[Point], target: float, higher_is_better: bool) -> float | None:
    """Returns where the line first reaches the target; None if nowhere."""
    before: Point | None = None
    for x, y in line:
        if _at(y, target, higher_is_better):
            if before is None:
                return x
            return before[0] + (x - before[0]) * (target - before[1]) / (y - before[1])
        before = (x, y)
    return None


@dataclass(frozen=True)
class Cost:
    """Cost of an arm's steps, mean over its runs, without their first steps.

    The first step of a run includes settling.

    Args:
        rate: tokens (images) per second; None if no metrics were kept.
        fractions: of the seconds, by part, as ``{"meta": 0.1}``; the remainder was not measured
            separately.
        first_seconds: time until the end of the first step.
        peak_bytes: maximum memory over the runs; None if it was not recorded.
        flops: of a run; None if they were not counted.
    """

    rate: float | None
    fractions: dict[str, float]
    first_seconds: float | None
    peak_bytes: float | None
    flops: float | None


def cost(runs: Sequence[Run]) -> Cost:
    """Returns the cost of one arm from its runs."""
    rates, firsts, fractions = [], [], []
    for run in runs:
        if not run.records:
            continue
        first, rest = run.records[0], run.records[1:]
        firsts.append(first["seconds"])
        if not rest or (seconds := rest[-1]["seconds"] - first["seconds"]) <= 0:
            continue
        rates.append((rest[-1]["tokens"] - first["tokens"]) / seconds)
        parts = dict.fromkeys(
            name for record in rest for name in record if name.startswith("seconds_")
        )
        fractions.append(
            {name: sum(record.get(name, 0.0) for record in rest) / seconds for name in parts}
        )
    names = dict.fromkeys(name for each in fractions for name in each)
    shares = {
        name.removeprefix("seconds_"): fmean(each.get(name, 0.0) for each in fractions)
        for name in names
    }
    peaks = [run.entry.peak_bytes for run in runs if run.entry.peak_bytes is not None]
    flops = [run.entry.flops for run in runs if run.entry.flops is not None]
    return Cost(
        fmean(rates) if rates else None,
        shares,
        fmean(firsts) if firsts else None,
        max(peaks, default=None),
        fmean(flops) if flops else None,
    )


def dominating(points: dict[str, Point], signs: tuple[float, float]) -> list[str]:
    """Returns the names on the Pareto front, by rising x: points that no other dominates.

    Args:
        points: by name.
        signs: for x and y, +1 if higher is better, -1 if lower is.
    """

    def beaten(name: str) -> bool:
        x, y = signed[name]
        others = [place for other, place in signed.items() if other != name]
        return any(a >= x and b >= y and (a > x or b > y) for a, b in others)

    signed = {name: (x * signs[0], y * signs[1]) for name, (x, y) in points.items()}
    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def _at(value: float, target: float, higher_is_better: bool) -> bool:
    return value >= target if higher_is_better else value <= target
