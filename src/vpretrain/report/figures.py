"""The charts of a section: scores and loss, steering over time, trade-offs between tasks."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from vpretrain.report.chart import Figure, Line, Panel, Style
from vpretrain.report.curves import (
    Axis,
    Point,
    binned,
    dominating,
    evaluated,
    logged,
    mean_points,
    points,
    width,
)
from vpretrain.report.folders import Section

Records = dict[float, dict[str, float]]

# Label and description of logged figures, in the order of the page; others follow under their own
# names.
STEERING = {
    "value": (
        "value of the step",
        "⟨u, g_pre⟩: how far the step that was taken lowers the feedback loss, to first order.",
    ),
    "gain": (
        "gain over the plain task",
        "V(designer) − V(plain): what the designer's task adds. Below zero it does harm.",
    ),
    "gain_bound": (
        "bound on the gain",
        "The most that targets on these candidates could gain, noise included.",
    ),
    "cosine": (
        "cosine with feedback",
        "Of the learner's gradient and the feedback direction u, on S.",
    ),
    "gate": ("gate", "Share of the target that is moved off the true token."),
    "entropy": ("target entropy (nats)", "0 for one-hot targets."),
    "weight_spread": (
        "spread of token weights",
        "Root mean square distance of token weights from 1; 0 where all count the same.",
    ),
    "documents_kept": ("documents kept", "What a step trains on, of all that were drawn for it."),
    "documents_dropped": ("documents dropped", "What was drawn for a step and left out."),
    "value_kept": ("value of what is kept", "Mean ⟨u, g⟩ of the chosen documents, or crops."),
    "value_drawn": ("value of what is drawn", "The same of all that were chosen among."),
    "repeated": ("trained on again", "Share of a step's tokens that were drawn and valued before."),
    "agreement": (
        "agreement of feedback halves",
        "Pearson's r of values under two halves of the feedback (running mean).",
    ),
    "reliability": ("reliability", "2r / (1 + r) of that agreement: values shrink by it."),
    "correlation": (
        "correlation of the designer",
        "Pearson's r of the values it predicts with the exact ones.",
    ),
    "regret": ("regret of the designer", "V(closed form) − V(designer)."),
    "value_baseline": (
        "value of the plain task",
        "V(plain): what the step would be worth without steering.",
    ),
    "gradient_norm": ("gradient norm, learner", "All trained parameters, before clipping."),
    "gradient_norm_aligned": (
        "gradient norm on S",
        "The learner's gradient on the aligned parameters.",
    ),
    "gradient_norm_downstream": (
        "gradient norm, feedback",
        "g_down on the aligned parameters, before the optimizer's preconditioner.",
    ),
    "steered": (
        "steered share of steps",
        "Steps whose task was the designer's; the guard closes it while gains are negative.",
    ),
    "learning_rate": ("learning rate", "Of the learner."),
    "estimator_error": (
        "error of the estimator",
        "Of differences, relative: how far they move with a smaller step.",
    ),
    "collapsed": (
        "designer collapsed",
        "1 while one of its figures stands at the end of its range.",
    ),
}
LIMITS = ("gain_bound", "regret")
"""Figures of :data:`STEERING` that the page folds away, because few readers need them."""
UNITS = {
    "nll": "nats per token",
    "pass@1": "share solved",
    "miou": "mean IoU",
    "probe_cross_entropy": "probe loss",
    "depth_rmse": "RMSE",
    "accuracy": "share right",
}


def figures(section: Section, prefix: str = "") -> dict[str, list[Figure]]:
    """Returns the section's figures by part of the page.

    The parts are ``curves``, ``steering``, ``limits`` (how far steering is from the best targets),
    ``cost`` and ``tradeoffs``.

    Each name starts with ``prefix``.
    """
    return {
        "curves": [*_scores(section, prefix), *_loss(section, prefix)],
        "steering": list(_steering(section, f"{prefix}steering", limits=False)),
        "limits": list(_steering(section, f"{prefix}limits", limits=True)),
        "cost": [*_score_against_cost(section, prefix), *_throughput(section, prefix)],
        "tradeoffs": list(_tradeoffs(section, prefix)),
    }


def styles(section: Section) -> dict[str, Style]:
    """Returns the style of each arm, the same everywhere on the page."""
    return {arm: Style(slot) for slot, arm in enumerate(section.arms)}


def metric_label(section: Section, metric: str) -> str:
    """Returns the metric with its unit and an arrow towards better values, if they are known."""
    arrow = {True: " ↑", False: " ↓", None: ""}[section.metrics.get(metric)]
    unit = UNITS.get(metric.rpartition("/")[2])
    return metric + arrow + (f" ({unit})" if unit else "")


def _scores(section: Section, prefix: str) -> Iterator[Figure]:
    for metric in section.metrics:
        by_arm = _by_arm(section, lambda run, metric=metric: evaluated(run, metric))
        shared = "All lines begin at the untouched checkpoint (step\u00a00)."
        shared = shared if metric in section.step0 else ""
        caption = f" {shared} Seconds are of training: settling counts, evaluation does not."
        name, title = f"{prefix}evaluation-{_slug(metric)}", f"{metric} during the runs"
        yield from _curves(section, by_arm, metric, None, name, title, caption)


def _loss(section: Section, prefix: str) -> Iterator[Figure]:
    by_arm = _by_arm(section, lambda run: logged(run, "loss"))
    caption = (
        " Each arm's own objective, which its targets and weights are part of: a lower line is not "
        "a better learner. Evaluations compare arms."
    )
    size = _size(by_arm) if by_arm else 1
    yield from _curves(section, by_arm, "loss", size, f"{prefix}loss", "Training loss", caption)


def _curves(
    section: Section,
    by_arm: dict[str, list[Records]],
    metric: str,
    size: int | None,
    name: str,
    title: str,
    caption: str,
) -> Iterator[Figure]:
    """Yields one figure over steps, tokens and seconds; none if nothing was recorded."""
    if not by_arm:
        return
    label = "training loss" if metric == "loss" else metric_label(section, metric)
    panels = [
        Panel(unit, label, _lines(section, by_arm, axis, metric, size), _level(section, metric))
        for axis, unit in _axes(section)
    ]
    yield Figure(
        name, title, _meaning(by_arm, size or 1) + caption, panels, _legend(section, by_arm)
    )


def _level(section: Section, metric: str) -> tuple[float, str] | None:
    start = section.step0.get(metric)
    return (start.value, "step 0") if start and math.isfinite(start.value) else None


def _steering(section: Section, figure: str, *, limits: bool) -> Iterator[Figure]:
    logs = dict.fromkeys(name for run in section.runs for record in run.records for name in record)
    apart = {"step", "tokens", "flops", "seconds", "tokens_per_second", "loss", *section.metrics}
    apart |= {"drawn"} | {name for name in logs if name.startswith(("seconds_", "prepared_"))}
    apart |= {name for name in logs if "/" in name}
    names = [name for name in STEERING if name in logs]
    names += [name for name in logs if name not in STEERING and name not in apart]
    panels: list[Panel] = []
    arms: dict[str, None] = {}
    sizes = []
    for name in [name for name in names if (name in LIMITS) == limits]:
        by_arm = _by_arm(section, lambda run, name=name: logged(run, name))
        least = 1e-5 if name == "weight_spread" else 0.0  # a spread below it is rounding
        if not by_arm or _most(by_arm, name) <= least:
            continue  # always zero, such as the gate of arms without one
        sizes.append(_size(by_arm))
        arms |= dict.fromkeys(by_arm)
        label, description = STEERING.get(name, (name, ""))
        lines = _lines(section, by_arm, "step", name, sizes[-1])
        panels.append(Panel("steps", label, lines, None, description))
    if panels:
        caption = (
            _meaning({arm: section.of(arm) for arm in arms}, max(sizes))
            + " What a designer is asked only at meta steps has points at those alone."
        )
        yield Figure(figure, "", caption, panels, _legend(section, arms))


def _score_against_cost(section: Section, prefix: str) -> Iterator[Figure]:
    """Yields the leading score against the total cost, post-training included."""
    metric = section.lead
    scores = {arm: each[metric] for arm, each in section.summaries.items() if metric in each}
    if metric is None or len(scores) < 2:
        return
    panels = []
    for unit, label in (("seconds", "seconds of training"), ("flops", "FLOPs")):
        lines = []
        for arm, style in styles(section).items():
            used = [getattr(run.entry, unit) for run in section.of(arm)]
            if arm in scores and all(used):
                spread = (statistics.stdev(used) if len(used) > 1 else 0.0, scores[arm].std or 0.0)
                place = (statistics.fmean(used), scores[arm].mean)
                lines.append(Line(arm, style, [place], joined=False, spread=spread))
        if len(lines) > 1:
            panels.append(
                Panel(label, metric_label(section, metric), lines, _level(section, metric))
            )
    if panels:
        caption = (
            "Means over seeds with one standard deviation each way. All that a run used is "
            "charged, evaluation aside."
        )
        arms = [(line.label, line.style) for line in panels[0].lines if line.style]
        yield Figure(f"{prefix}bought", f"{metric} against its cost", caption, panels, arms)


def _throughput(section: Section, prefix: str) -> Iterator[Figure]:
    name = "tokens_per_second"
    by_arm = _by_arm(section, lambda run: logged(run, name))
    if by_arm:
        size = _size(by_arm)
        lines = _lines(section, by_arm, "step", name, size)
        panels = [Panel("steps", f"{section.unit} a second", lines)]
        caption, arms = (
            _meaning(by_arm, size) + " Evaluation is not in it.",
            _legend(section, by_arm),
        )
        yield Figure(f"{prefix}throughput", "Throughput", caption, panels, arms)


def _tradeoffs(section: Section, prefix: str) -> Iterator[Figure]:
    groups: dict[str, list[str]] = {}
    for metric, higher in section.metrics.items():
        task, slash, suffix = metric.partition("/")
        if slash and task and higher is not None:
            groups.setdefault(suffix, []).append(metric)
    caption = (
        "Means over seeds with one standard deviation each way. The line joins what nothing "
        "else here equals or beats in both tasks (the Pareto front of these means; no test is "
        "behind it)."
    )
    for suffix, metrics in groups.items():
        for across, up in combinations(metrics, 2):
            panel, arms = _front(section, across, up)
            if len(panel.lines) > 2:
                name = f"{prefix}pareto-{_slug(across)}-{_slug(up)}"
                title = f"Two tasks at once: {suffix}"
                yield Figure(name, title, caption, [panel], arms, wide=True)


def _front(section: Section, across: str, up: str) -> tuple[Panel, list[tuple[str, Style]]]:
    places: dict[str, Point] = {}
    lines: list[Line] = []
    for arm, style in styles(section).items():
        scores = section.summaries.get(arm, {})
        if across in scores and up in scores:
            places[arm] = (scores[across].mean, scores[up].mean)
            spread = (scores[across].std or 0.0, scores[up].std or 0.0)
            lines.append(Line(arm, style, [places[arm]], joined=False, spread=spread))
    arms = [(line.label, line.style) for line in lines if line.style]
    untouched = "step 0"
    while untouched in places:  # an arm may have that name
        untouched += " (untouched)"
    start = [section.step0[metric].value for metric in (across, up) if metric in section.step0]
    if len(start) == 2 and all(map(math.isfinite, start)):
        places[untouched] = (start[0], start[1])
        lines.append(Line(untouched, None, [places[untouched]], joined=False, spread=(0.0, 0.0)))
    signs = (1.0 if section.metrics[across] else -1.0, 1.0 if section.metrics[up] else -1.0)
    front = [places[name] for name in dominating(places, signs)]
    labels = metric_label(section, across), metric_label(section, up)
    return Panel(*labels, [Line("front", None, front), *lines], counts_x=False), arms


def _by_arm(section: Section, of: Callable[..., Records]) -> dict[str, list[Records]]:
    """Returns the records of each arm's runs; arms and runs without any are left out."""
    by_arm = {
        arm: [records for run in section.of(arm) if (records := of(run))] for arm in section.arms
    }
    return {arm: runs for arm, runs in by_arm.items() if runs}


def _lines(
    section: Section, by_arm: dict[str, list[Records]], axis: Axis, metric: str, size: int | None
) -> list[Line]:
    """Returns faint seeds first, then means; evaluations (``size`` None) are few and not binned."""
    faint, means = [], []
    for arm, runs in by_arm.items():
        style = styles(section)[arm]
        if len(runs) > 1:
            seeds = [binned(points(records, axis, metric), size or 1) for records in runs]
            faint += [Line(arm, style, line, faint=True) for line in seeds]
        mean = binned(mean_points(runs, axis, metric), size or 1)
        every = 1 if size is None and len(mean) <= 24 else max(1, len(mean) // 5)
        means.append(Line(arm, style, mean, every=every))
    return [line for line in faint + means if line.points]


def _most(by_arm: dict[str, list[Records]], name: str) -> float:
    logs = [records for runs in by_arm.values() for records in runs]
    return max(abs(record[name]) for records in logs for record in records.values())


def _legend(section: Section, by_arm: Mapping[str, object]) -> list[tuple[str, Style]]:
    return [(arm, style) for arm, style in styles(section).items() if arm in by_arm]


def _axes(section: Section) -> list[tuple[Axis, str]]:
    axes: list[tuple[Axis, str]] = [("step", "steps"), ("tokens", section.unit)]
    records = [record for run in section.runs for record in run.records]
    if section.match == "flops" and all("flops" in record for record in records):
        axes.append(("flops", "FLOPs"))
    return [*axes, ("seconds", "seconds of training")]


def _size(by_arm: dict[str, list[Records]]) -> int:
    return width(max(len(records) for runs in by_arm.values() for records in runs))


def _meaning(by_arm: Mapping[str, Sequence[object]], size: int) -> str:
    """Describes in a sentence what a line shows."""
    lines = (
        "Mean over seeds, with single seeds faint"
        if any(len(runs) > 1 for runs in by_arm.values())
        else "One run an arm"
    )
    return lines + ("." if size == 1 else f"; a point is the mean over up to {size} neighbours.")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "metric"
