"""Results as tables and lines for a terminal; the tables of scores begin with step 0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vpretrain.method.ways import LEAVE_ABOVE
from vpretrain.report.formatting import many
from vpretrain.run.resources import readable_size
from vpretrain.run.scores import MEANINGS
from vpretrain.studies.statistics import NOT_BY_ITEMS, decided_by_seeds_alone

if TYPE_CHECKING:
    from vpretrain.studies.check import Examined


def run_table(result: dict[str, Any]) -> Table:
    """Returns step 0 and the final scores of one run."""
    title = f"{result['arm']}: {result['steps']} steps, {result['seconds']:.0f} s"
    legend = _legend(result["step0"])
    # A table is as wide as its columns, and would break title and legend there.
    table = Table(title=title, caption=legend, min_width=max(len(title), len(legend)))
    table.add_column("metric")
    table.add_column("step 0", justify="right")
    table.add_column("final", justify="right")
    for metric, value in result["step0"].items():
        table.add_row(metric, f"{value:.4f}", f"{result['final'][metric]:.4f}")
    return table


def _legend(metrics: Iterable[str]) -> str:
    """Explains the terms of a table."""
    kinds = dict.fromkeys(metric.rpartition("/")[2] for metric in metrics)
    known = [f"{kind.replace('_', ' ')}: {MEANINGS[kind]}" for kind in kinds if kind in MEANINGS]
    return "; ".join(["step 0: the model before training", *known])


SCORE_WIDTH, DIFFERENCE_WIDTH, FRAME = 8, 9, 3
"""Columns' widths in characters for a score and its difference, wrapped at spaces and never inside
a number, and the width that a column's frame adds.
"""
ONE_LINE = 48
"""Width of a metric whose score and difference each fit on one line."""


def comparison_table(table: dict[str, Any], width: int) -> Table:
    """Returns arms by metrics: scores over seeds, then the paired difference with its interval.

    Args:
        table: ``compare.json``.
        width: of the terminal; it shows as many of the leading metrics as fit, and names the
            others.
    """
    baseline = table["runs"][0]["arm"]
    seeds = len({run["seed"] for run in table["runs"]})
    shown = Table(
        title=f"{table['budget']:g} {table['match']}, {seeds} seed(s); differences are to "
        f"{baseline}"
    )
    room = width - max(map(len, table["summary"])) - len("s/run") - 2 * FRAME - 1
    fitting = room // (SCORE_WIDTH + DIFFERENCE_WIDTH + 2 * FRAME)
    metrics = list(table["metrics"])[: max(1, fitting)]
    tight = room < len(metrics) * ONE_LINE  # then every number has its own line
    marks = "* better or ! worse than the first arm, where it is beyond chance"
    shown.caption = f"{_legend(metrics)}; ± over seeds; {marks}"
    if more := list(table["metrics"])[len(metrics) :]:
        shown.caption += f"; in the report, and not here: {', '.join(more)}"
    shown.add_column("arm", no_wrap=True)
    for metric in metrics:
        better = "↑" if table["metrics"][metric]["higher_is_better"] else "↓"
        words = metric.replace("/", "/ ").replace("_", " ")  # a header breaks only at spaces
        shown.add_column(f"{words} {better}", justify="right", width=SCORE_WIDTH if tight else None)
        shown.add_column("diff. [95%]", justify="right", width=DIFFERENCE_WIDTH if tight else None)
    shown.add_column("s/run", justify="right")
    start = [cell for metric in metrics for cell in (f"{table['step0'][metric]['value']:.4f}", "")]
    shown.add_row("step 0", *start, "", end_section=True)
    for arm, scores in table["summary"].items():
        cells: list[str] = []
        for metric in metrics:
            pair = table["paired"].get(arm, {}).get(metric)
            cells += [_mean(scores.get(metric)), _difference(pair)]
        seconds = [run["seconds"] for run in table["runs"] if run["arm"] == arm]
        shown.add_row(arm, *cells, f"{sum(seconds) / len(seconds):.0f}")
    return shown


def verdicts(table: dict[str, Any]) -> Iterator[str]:
    """Yields one sentence per arm on the leading (first) metric.

    It says "better" only if the corrected interval excludes zero. If there are too few seeds for a
    verdict, a sentence says so. An arm that has no score in that metric gets no sentence.
    """
    metric = next(iter(table["metrics"]))
    baseline = table["runs"][0]["arm"]
    pairs = {arm: each[metric] for arm, each in table["paired"].items() if metric in each}
    for arm, pair in pairs.items():
        undecided = pair["verdict"] == "undecided"
        relation = "undecided against" if undecided else f"{pair['verdict']} than"
        p = "" if pair["p_holm"] is None else f" (p = {pair['p_holm']:.2g}, Holm)"
        line = f"{arm}: {relation} {baseline} in {metric}{p}"
        by_seeds_alone = decided_by_seeds_alone(
            pair["verdict"], pair["p_holm"], items="items" in pair
        )
        yield f"{line}: {NOT_BY_ITEMS}" if by_seeds_alone else line
    if table["paired"] and len({run["seed"] for run in table["runs"]}) < 2:
        yield "one seed decides nothing: compare three or more for a verdict"


def examined_lines(result: Examined, *, first_look: bool = True) -> Iterator[str]:
    """Yields the result of ``check``: problems, number of warnings, and the needs of a run.

    A shorter run follows if the run is long.

    ``first_look=False`` leaves out the shorter run, for callers that print its whole command.
    """
    yield from map(str, result.problems)
    if result.problems:
        yield f"{len(result.problems)} problem(s)"
        return
    warnings = many(len(result.warnings), "warning")
    ending = f" that would stop a run; {warnings} above" if result.warnings else ""
    yield f"no problem found{ending}"
    if (need := result.needs) is None:
        return
    memory, disk = readable_size(need.memory_bytes), readable_size(need.disk_bytes)
    time = "" if need.seconds is None else f", {duration(need.seconds)} of training here"
    on_top = "steering, feedback and evaluation come on top"
    if need.meta_seconds is not None and need.evaluation_seconds is not None:
        meta, evaluation = duration(need.meta_seconds), duration(need.evaluation_seconds)
        on_top = f"add {meta} for each meta step and {evaluation} for each evaluation"
    yield (
        f"one run takes {memory} of memory or more, {disk} of disk{time} (a forward pass took "
        f"{need.forward_seconds:.2g} s); {on_top}"
    )
    if first_look and (look := need.first_look):
        yield f"that is long: for a first look of about {duration(look.seconds)} add"
        yield f"  {look.overrides}"


def duration(seconds: float) -> str:
    """Formats seconds in a suitable unit."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def doctor_table(result: dict[str, Any]) -> Table:
    """Returns estimators with their accuracy and cost."""
    slowest = max((e["seconds"] for e in result["estimators"] if e["seconds"]), default=None)
    caption = "cosine and relative error against double backward in float64"
    if result["rounding"] is not None:
        caption += (
            f" from the learner's own pass, whose {result['dtype']} makes "
            f"{result['rounding']:.1e} of difference to float32"
        )
    table = Table(title="ways to compute a task's value (value.estimator)", caption=caption)
    for name in ("estimator", "works", "cosine", "relative error", "ms", "of slowest", "peak MiB"):
        table.add_column(name, justify="left" if name in ("estimator", "works") else "right")
    for row in result["estimators"]:
        if row["supported"]:
            table.add_row(
                row["name"],
                "yes",
                f"{row['cosine']:.7f}",
                f"{row['relative_error']:.1e}",
                f"{row['seconds'] * 1e3:.1f}",
                f"{row['seconds'] / slowest:.2f}",
                f"{row['peak_bytes'] / 2**20:.1f}",
            )
        else:
            table.add_row(row["name"], f"no: {row['reason']}", "", "", "", "", "")
    return table


def doctor_advice(result: dict[str, Any], chosen: str) -> str:
    """Returns whether the recipe's estimator is accurate enough, and the fastest that is."""
    good = {
        row["name"]: row["seconds"]
        for row in result["estimators"]
        if row["supported"] and row["relative_error"] <= LEAVE_ABOVE
    }
    if not good:
        return "none of them is exact on this model: steering would follow noise"
    fastest = min(good, key=lambda name: good[name])
    if chosen not in good:
        return f"the recipe's {chosen} is not exact enough here: set value.estimator={fastest}"
    if fastest == chosen:
        return f"the recipe's {chosen} is exact enough, and the fastest that is"
    times = good[chosen] / good[fastest]
    return (
        f"the recipe's {chosen} is exact enough; value.estimator={fastest} is {times:.1f} times as "
        "fast here, and takes the memory shown"
    )


def profile_tables(result: dict[str, Any]) -> tuple[Table, Table]:
    """Returns each arm's cost relative to the first, and where a step's time goes.

    Each fits a terminal of 100 characters.
    """
    return _cost_table(result), _shares_table(result)


def _cost_table(result: dict[str, Any]) -> Table:
    table = Table(title=f"medians of {result['rounds']} interleaved rounds; ratios to the first")
    table.add_column("arm")
    speed = f"{result['unit']}/s"
    for name in (speed, "spread", "ratio", "peak MiB", "ratio", "GFLOP/step", "ratio"):
        table.add_column(name, justify="right")
    for arm, row in result["arms"].items():
        ratio = {
            what: f"{result['ratios'][what].get(arm, 1.0):.2f}"
            for what in ("throughput", "memory", "flops")
        }
        table.add_row(
            arm,
            f"{row['tokens_per_second']:.0f}",
            f"{row['spread']:.0%}",
            ratio["throughput"],
            f"{row['peak_bytes'] / 2**20:.0f}",
            ratio["memory"],
            f"{row['flops'] / 1e9:.1f}",
            ratio["flops"],
        )
    return table


def _shares_table(result: dict[str, Any]) -> Table:
    parts = list(next(iter(result["shares"].values())))
    table = Table(title="where the time goes")
    table.add_column("arm")
    for name in parts:
        table.add_column(name, justify="right")
    for arm, shares in result["shares"].items():
        table.add_row(arm, *(f"{shares[part]:.1%}" for part in parts))
    return table


def probe_table(result: dict[str, Any]) -> Table:
    """Returns predictions of a step's drop, and their correlation with the realised drop."""
    bound = result["lower_bound"]
    table = Table(
        title=f"{result['draws']} draws; Pearson's r of predicted and realised one-step drop",
        caption=f"SGD steps are {result['sgd_step_share']:g} of |S|, AdamW's "
        f"{result['adamw_step_share']:.1g}; "
        f"Prop. 2.1 with L = {bound['smoothness']:.2g} holds in {bound['share_holding']:.0%} "
        "of the draws",
    )
    table.add_column("prediction")
    for name in ("r", "95%", "realised / predicted"):
        table.add_column(name, justify="right")
    for name, r in result["pearson"].items():
        slope = result["slope"].get(name)
        cells = _correlation(r, result["ci95"][name])
        table.add_row(name, *cells, "" if slope is None else f"{slope:.3f}")
    return table


def along_table(result: dict[str, Any]) -> Table:
    """Returns the correlation of value and realised drop at points of a run, and over all."""
    table = Table(
        title=f"{result['arm']}: {result['draws']} draws at each of {result['points']} points; "
        "Pearson's r of predicted and realised drop of a fresh held-out batch"
    )
    for name in ("step", "held-out loss", "r, SGD on S", "95%", "r, SGD on all", "95%"):
        table.add_column(name, justify="right")
    for row in (*result["along"], {"step": "all", **result}):
        cells = [str(row["step"]), f"{row['held_out_loss']:.4f}"]
        for name in ("sgd_aligned", "sgd_full"):
            cells += _correlation(row["pearson"][name], row["ci95"][name])
        table.add_row(*cells, end_section=row is result["along"][-1])
    return table


def _correlation(r: float | None, interval: list[float] | None) -> tuple[str, str]:
    if r is None or interval is None:
        return "–", ""
    return f"{r:.3f}", f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _mean(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "–"
    spread = "" if summary["std"] is None else f" ±{summary['std']:.4f}"
    return f"{summary['mean']:.4f}{spread}"


def _difference(pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    interval = "" if pair["ci95"] is None else f" [{pair['ci95'][0]:+.4f}, {pair['ci95'][1]:+.4f}]"
    mark = {"better": " *", "worse": " !", "undecided": ""}[pair["verdict"]]
    return f"{pair['difference']:+.4f}{interval}{mark}"
