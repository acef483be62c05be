"""The page's tables: results, usage by arm, tokens until a score, cost, provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from vpretrain.report.chart import Style, span
from vpretrain.report.curves import Cost, cost, evaluated, reaches
from vpretrain.report.drawing import interval, swatch
from vpretrain.report.figures import metric_label, styles
from vpretrain.report.files import Paired
from vpretrain.report.folders import Section
from vpretrain.report.formatting import (
    brief,
    compact,
    decimals_for,
    fixed,
    fraction,
    many,
    p_value,
    signed,
)
from vpretrain.system.html import Markup, joined, name, tag

DASH = "–"


def results(section: Section) -> Markup:
    """Returns one table per metric: step 0, then each arm's scores.

    An arm has mean, deviation, and paired difference to the first arm.
    """
    return joined(*(_result(section, metric) for metric in section.metrics))


def _result(section: Section, metric: str) -> Markup:
    scores = {arm: each[metric] for arm, each in section.summaries.items() if metric in each}
    paired = {arm: each[metric] for arm, each in section.paired.items() if metric in each}
    spreads = [each.std for each in scores.values()]
    spreads += [(p.ci95[1] - p.ci95[0]) / 2 for p in paired.values() if p.ci95]
    decimals = decimals_for(spreads)
    start = section.step0.get(metric)
    head = ["arm", "mean ± std"]
    if paired:
        head += [joined("difference to ", name(section.arms[0]), " [95%]"), "", "p (Holm)"]
    rows: list[Markup] = []
    if start is not None:
        error = "" if start.stderr is None else f"± {fixed(start.stderr, decimals)}"
        value = joined(fixed(start.value, decimals), tag("span", error, class_="quiet"))
        cells = [value, *[""] * (len(head) - 2)]
        rows.append(_row("step 0", cells, None, "step0", note="± s.e." if error else ""))
    scale = _scale(paired)
    for arm, each in scores.items():
        deviation = "" if each.std is None else f"± {fixed(each.std, decimals)}"
        cells = [joined(fixed(each.mean, decimals), tag("span", deviation, class_="quiet"))]
        if paired:
            cells += _difference(paired.get(arm), decimals, scale, styles(section)[arm], arm)
        rows.append(_row(arm, cells, styles(section)[arm]))
    seeds = many(max((each.n for each in scores.values()), default=0), "seed")
    caption = joined(tag("strong", metric_label(section, metric)), f" {seeds}")
    return _table(caption, head, rows, "paired" if paired else "")


def _difference(
    pair: Paired | None, decimals: int, scale: tuple[float, float], style: Style, arm: str
) -> list[Markup | str]:
    if pair is None:
        return ["", "", ""]
    ends = [signed(end, decimals) for end in pair.ci95] if pair.ci95 else []
    over_seeds = f"[{ends[0]}, {ends[1]}]" if ends else "no interval"
    intervals = [joined("seeds " if pair.items else "", tag("span", over_seeds, class_="number"))]
    if pair.items:
        low, high = (signed(end, decimals) for end in pair.items.ci95)
        intervals.append(joined("items ", tag("span", f"[{low}, {high}]", class_="number")))
    difference = signed(pair.difference, decimals)
    number = joined(
        tag("span", difference, class_="number"),
        " ",
        tag("span", pair.verdict, class_=f"verdict-{pair.verdict}"),
        *(tag("span", each, class_="quiet below") for each in intervals),
    )
    label = f"{arm}: {difference} {over_seeds}"
    drawn = interval(pair.difference, pair.ci95, *scale, style, label)
    return [number, drawn, p_value(pair.p_holm)]


def _scale(paired: dict[str, Paired]) -> tuple[float, float]:
    """Returns the range of a table's intervals, including zero."""
    ends = [end for pair in paired.values() for end in (pair.difference, *(pair.ci95 or ()))]
    return span([0.0, *filter(math.isfinite, ends)])


def meanings(section: Section) -> Markup:
    """Returns one sentence on each arm; empty if the results have none."""
    pairs = [
        joined(tag("dt", name(arm)), tag("dd", description))
        for arm, description in section.descriptions.items()
    ]
    return tag("dl", *pairs, class_="facts") if pairs else joined()


def reading(section: Section) -> Markup:
    """Returns an explanation of the verdicts in the tables; empty if there are none."""
    judged = [pair for metrics in section.paired.values() for pair in metrics.values()]
    if not judged:
        return joined()
    items = " and the one over held-out items" if any(pair.items for pair in judged) else ""
    text = (
        f"“better” and “worse” need the interval over seeds{items} clear of zero, and p below "
        "0.05 after Holm's correction over arms. Both are of one metric at a time: the first "
        "leads, the others are looked at beside it. Step 0 is one checkpoint: what is beside its "
        "score is the standard error (s.e.) over held-out items."
    )
    return tag("p", text, class_="note")


def used(section: Section) -> Markup:
    """Returns steps, tokens and seconds of each arm, mean over seeds, with the range of seconds."""
    head = ["arm", "runs", "steps", section.unit, "seconds"]
    flops = any(run.entry.flops for run in section.runs)
    if flops:
        head.append("FLOPs")
    rows = []
    for arm in section.arms:
        entries = [run.entry for run in section.of(arm)]
        seconds = [entry.seconds for entry in entries]
        spread = f"{min(seconds):.0f} to {max(seconds):.0f}" if len(seconds) > 1 else ""
        cells: list[object] = [
            str(len(entries)),
            fixed(fmean(e.steps for e in entries), 0),
            fixed(fmean(e.tokens_or_images for e in entries), 0),
            joined(fixed(fmean(seconds), 1), tag("span", spread, class_="quiet")),
        ]
        if flops:
            counted = [entry.flops for entry in entries if entry.flops is not None]
            cells.append(compact(fmean(counted)) if counted else DASH)
        rows.append(_row(arm, cells, styles(section)[arm]))
    match = ""
    if section.match and section.budget:
        match = f"Matched by {section.match}, {section.budget:,g} each. "
    text = f" {match}Means over runs; seconds with their range."
    return _table(joined(tag("strong", "What each arm used"), text), head, rows)


def runs(section: Section) -> Markup:
    """Returns a table per metric for run folders: step 0 and the end of each run."""
    parts = []
    for metric in section.metrics:
        values = [run.entry.final.get(metric) for run in section.runs]
        decimals = decimals_for([abs(v) / 100 for v in values if v])
        rows = []
        for run in section.runs:
            start, end = run.step0.get(metric), run.entry.final.get(metric)
            cells = [DASH if value is None else fixed(value, decimals) for value in (start, end)]
            cells.append(DASH if start is None or end is None else signed(end - start, decimals))
            title = f"{run.arm}, seed {run.entry.seed}"
            rows.append(_row(title, cells, styles(section)[run.arm]))
        caption = tag("strong", metric_label(section, metric))
        parts.append(_table(caption, ["run", "step 0", "final", "change"], rows))
    return joined(*parts)


def efficiency(section: Section) -> Markup:
    """Returns tokens until the baseline's final score, by metric evaluated during the runs."""
    baseline = name(section.arms[0])
    if not any(evaluated(run, metric) for run in section.runs for metric in section.metrics):
        hint = tag("code", "evaluate.every=N")
        text = "These runs were evaluated at their end alone. To see after how many "
        rest = (
            f" each arm reaches the baseline's final score, run again with {hint} (an "
            "evaluation every N steps)."
        )
        return tag("p", text, section.unit, Markup(rest), class_="note")
    parts, reached = [], False
    for metric in section.metrics:
        result = reaches(section, metric)
        if isinstance(result, str):
            parts.append(tag("p", name(metric), ": ", result, class_="note"))
            continue
        target, arms = result
        reached = True
        rows = []
        for arm, reach in arms.items():
            tokens = "not reached" if reach.tokens is None else fixed(reach.tokens, 0)
            rows.append(
                _row(
                    arm,
                    [
                        tokens,
                        DASH if reach.fraction is None else fraction(reach.fraction),
                        f"{reach.seeds} of {reach.of}",
                    ],
                    styles(section)[arm],
                )
            )
        caption = joined(
            tag("strong", metric_label(section, metric)),
            " until ",
            brief(target),
            ", the mean that ",
            baseline,
            " ended at",
        )
        head = ["arm", section.unit, joined("of ", baseline, "'s"), "seeds that reach it"]
        parts.append(_table(caption, head, rows))
    crossed = (
        "First crossing of the mean curve, between evaluations by a straight line. It has no "
        "interval: rare evaluations or few seeds make it coarse, and a noisy curve crosses early."
    )
    if reached:
        parts.append(tag("p", crossed, class_="note"))
    return joined(*parts)


def costs(section: Section) -> Markup | None:
    """Returns speed, time by part, and memory of each arm; None if no metrics were kept."""
    by_arm = {arm: cost(section.of(arm)) for arm in section.arms}
    if all(each.rate is None for each in by_arm.values()):
        return None
    first = by_arm[section.arms[0]].rate
    parts = list(dict.fromkeys(part for each in by_arm.values() for part in each.fractions))
    memory = any(each.peak_bytes is not None for each in by_arm.values())
    head = ["arm", f"{section.unit}/s", *parts, "rest", "first step, s"]
    if memory:
        head.append("peak memory")
    rows = []
    for arm, each in by_arm.items():
        relative = fraction(each.rate / first) if each.rate is not None and first else ""
        rate: object = DASH
        if each.rate is not None:
            rate = joined(fixed(each.rate, 0), tag("span", relative, class_="quiet"))
        cells: list[object] = [rate, *_shares(each, parts)]
        cells.append(DASH if each.first_seconds is None else fixed(each.first_seconds, 1))
        if memory:
            cells.append(DASH if each.peak_bytes is None else f"{each.peak_bytes / 2**30:.2f} GiB")
        rows.append(_row(arm, cells, styles(section)[arm]))
    caption = joined(
        f"{section.unit.capitalize()} a second (beside it, relative to the first arm) and shares "
        "of the training seconds, mean over runs, after each run's first step. “rest” is what was "
        "not measured apart. “first step” is the time until its end, settling included.",
    )
    return _table(caption, head, rows, "cost")


def _shares(each: Cost, parts: Sequence[str]) -> Iterator[Markup | str]:
    if each.rate is None:
        yield from [DASH] * (len(parts) + 1)
        return
    values = [each.fractions.get(part, 0.0) for part in parts]
    for value in [*values, 1 - math.fsum(values)]:
        wide = min(100.0, max(0.0, 100 * value))
        bar = tag("span", tag("i", style=f"width:{wide:.1f}%"), class_="bar")
        yield joined(fraction(value), bar)


def provenance(section: Section) -> Markup:
    """Returns the environment (command, versions, hardware, commit), then the stream's digests."""
    values = dict(section.environment)
    command, versions = values.pop("command", None), values.pop("versions", None)
    labels = {"git_commit": "git commit", "system": "operating system"}
    rows = [("versions", _plain(versions))] if isinstance(versions, dict) else []
    rows += [
        (labels.get(key, key.replace("_", " ")), _plain(value)) for key, value in values.items()
    ]
    rows += [("folder", str(folder)) for folder in section.folders]
    facts = (joined(tag("dt", key), tag("dd", value)) for key, value in rows)
    return joined(
        tag("pre", tag("code", command)) if command else "",
        tag("dl", *facts, class_="facts"),
        _digests(section) or "",
    )


def _digests(section: Section) -> Markup | None:
    lines = []
    for seed in section.seeds:
        by_digest: dict[str, list[str]] = {}
        for run in section.runs:
            if run.entry.seed == seed and run.entry.stream_digest:
                by_digest.setdefault(run.entry.stream_digest, []).append(run.arm)
        for digest, arms in by_digest.items():
            who = "all arms" if len(by_digest) == 1 and len(arms) > 1 else ", ".join(arms)
            lines.append(_row(f"seed {seed}", [tag("code", digest), who], None))
    if not lines:
        return None
    caption = joined(
        tag("strong", "Stream digests"),
        " Arms with one digest drew the same batches in the same order, to their end.",
    )
    return _table(caption, ["seed", "digest", "arms"], lines, "plain")


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _table(
    caption: Markup, head: Sequence[object], rows: Sequence[Markup], kind: str = ""
) -> Markup:
    cells = [tag("th", cell, scope="col") for cell in head]
    parts = tag("caption", caption), tag("thead", tag("tr", *cells)), tag("tbody", *rows)
    return tag("div", tag("table", *parts, class_=kind or None), class_="scroll", tabindex="0")


def _row(
    title: str,
    cells: Sequence[object],
    style: Style | None,
    kind: str | None = None,
    *,
    note: str = "",
) -> Markup:
    beside = tag("span", note, class_="quiet said") if note else ""
    first = joined(swatch(style) if style else "", name(title), beside)
    columns = (tag("td", cell) for cell in cells)
    return tag("tr", tag("th", first, scope="row"), *columns, class_=kind)
