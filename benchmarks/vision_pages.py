"""Writes the measured tables of vision into docs/vision.md and README.md from
`results/vision-*.json`: none is typed by hand.

    python benchmarks/vision_pages.py

Each `<!-- vision: NAME -->` is followed by the table made from `results/vision-NAME.json`, which
`benchmarks/steering.py`, `vision_gates.py`, `vision_why.py`, `vision_meta_step.py` or
`plain_dino.py` wrote. Of a study, `<!-- vision: NAME metrics A B -->`
shows those metrics alone, `<!-- vision: NAME rows A; B -->` its baseline and those rows,
`<!-- vision: NAME of ROW -->` that row minus every other, pair by pair, and
`<!-- vision: NAME of mask_std -->` the gain of every run by that logged figure.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from pages import ROOT, markdown

from vpretrain.studies.statistics import paired_difference

PERCENT = {"miou", "accuracy", "knn", "depth_delta_1"}
"""Metrics that are shown in percent."""
NAMES = {
    "miou": "mIoU, %",
    "probe_cross_entropy": "probe cross-entropy",
    "depth_rmse": "depth RMSE, m",
    "depth_abs_rel": "depth AbsRel",
    "depth_delta_1": "depth delta_1, %",
    "accuracy": "accuracy, %",
    "knn": "k-NN, %",
}
MARK = re.compile(
    r"(<!-- vision: ([\w-]+)(?: metrics ([\w ]+?))?(?: rows ([^>]+?))?(?: of (\w[\w, -]*?))? "
    r"-->\n)(?:\|.*\n)*"
)
SUMMARY = {"miou", "depth_rmse"}
"""Metrics of a study's table that does not name its own."""


def study(table: Mapping[str, Any], metrics: set[str], rows: list[str]) -> list[str]:
    """Rows of a study against its first, step 0 on top, with paired differences and how hard each
    steered.
    """
    shown = [name for name in table["metrics"] if name.split("/")[1] in metrics]
    baseline = next(iter(table["rows"]))
    head = ["row"]
    for metric in shown:
        head += [NAMES[metric.split("/")[1]], "difference [95%]", "verdict"]
    lines = [[*head, "pairs", "mask", "reliability", "s/run"]]
    first = ["step 0"]
    for metric in shown:
        scale, digits = _unit(metric)
        first += [
            " / ".join(
                f"{scale * start[metric]['value']:.{digits}f}" for start in table["step0"].values()
            ),
            "",
            "",
        ]
    lines.append([*first, "", "", "", ""])
    for row in (name for name in table["summary"] if not rows or name in rows or name == baseline):
        runs = [run for run in table["runs"] if run["arm"] == row]
        line = [row]
        for metric in shown:
            line += _scored(table, row, metric)
        lines.append(
            [
                *line,
                str(len(runs)),
                *_steering(runs),
                f"{statistics.fmean(run['seconds'] for run in runs):.0f}",
            ]
        )
    return markdown(lines)


def _scored(table: Mapping[str, Any], row: str, metric: str) -> list[str]:
    scale, digits = _unit(metric)
    result, pair = table["summary"][row][metric], table["paired"].get(row, {}).get(metric)
    spread = "" if result["std"] is None else f" ±{scale * result['std']:.{digits}f}"
    mean = f"{scale * result['mean']:.{digits}f}{spread}"
    if pair is None:
        return [mean, "", "baseline"]
    interval = verdict = ""
    if pair["ci95"]:
        low, high = (f"{scale * end:+.{digits}f}" for end in pair["ci95"])
        interval, verdict = f" [{low}, {high}]", pair["verdict"]
    return [mean, f"{scale * pair['difference']:+.{digits}f}{interval}", verdict]


def pairwise(table: Mapping[str, Any], row: str) -> list[str]:
    """One row minus every other over the pairs that both have, by the study's first metric."""
    metric = next(iter(table["metrics"]))
    scale, digits = _unit(metric)
    name = NAMES[metric.split("/")[1]]
    of = {(run["arm"], run["seed"]): run["final"][metric] for run in table["runs"]}
    lines = [[f"`{row}` minus", f"{name}, each pair", "mean [95%]"]]
    for other in (name for name in table["summary"] if name != row):
        seeds = [seed for arm, seed in of if arm == other and (row, seed) in of]
        if len(seeds) < 2:
            continue
        sides = [[of[(arm, seed)] for seed in seeds] for arm in (row, other)]
        result = paired_difference(*sides)
        each = ", ".join(f"{scale * (a - b):+.{digits}f}" for a, b in zip(*sides, strict=True))
        low, high = result.ci95 or (float("nan"), float("nan"))
        mean = (
            f"{scale * result.difference:+.{digits}f} [{scale * low:+.{digits}f}, "
            f"{scale * high:+.{digits}f}]"
        )
        lines.append([f"`{other}`", each, mean])
    return markdown(lines)


def dependence(table: Mapping[str, Any], mean: str) -> list[str]:
    """What every run gained over the baseline's of its pair, by the mean of a logged figure, and
    how the two go together.
    """
    metric, baseline = next(iter(table["metrics"])), next(iter(table["rows"]))
    scale, digits = _unit(metric)
    plain = {run["seed"]: run["final"][metric] for run in table["runs"] if run["arm"] == baseline}
    steered = [run for run in table["runs"] if mean in run["means"] and run["seed"] in plain]
    result = [
        (run["means"][mean], scale * (run["final"][metric] - plain[run["seed"]]), run)
        for run in steered
    ]
    points = sorted(result, key=lambda point: point[0])
    lines = [[mean, f"{NAMES[metric.split('/')[1]]} minus {baseline}", "row", "start and seed"]]
    lines += [[f"{x:.3f}", f"{y:+.{digits}f}", run["arm"], run["seed"]] for x, y, run in points]
    r = statistics.correlation(*([point[i] for point in points] for i in (0, 1)))
    return markdown([*lines, ["Pearson r", f"{r:.2f}", "", f"{len(points)} runs"]])


def _unit(metric: str) -> tuple[float, int]:
    """What a metric is multiplied by, and its digits."""
    return (100.0, 2) if metric.split("/")[1] in PERCENT else (1.0, 3)


def _steering(runs: list[dict[str, Any]]) -> list[str]:
    """How masks looked on average, and how far feedback was trusted."""

    def mean(key: str) -> float | None:
        known = [run["means"][key] for run in runs if key in run["means"]]
        return statistics.fmean(known) if known else None

    kept, spread, gate, trust = (
        mean(key) for key in ("mask_mean", "mask_std", "gate", "reliability")
    )
    looks = (
        ""
        if gate is None
        else f"gate {gate:.2f}"
        if kept is None
        else f"keeps {kept:.2f} ±{spread:.2f}"
    )
    return [looks, "" if trust is None else f"{trust:.2f}"]


def gates(result: Mapping[str, Any]) -> list[str]:
    """What each way of training comes to, then the gates and whether they hold."""
    lines = [["mIoU, %, test scenes", "mean", "each seed"]]
    for name, each in result["miou_percent"].items():
        lines.append([name, f"{statistics.fmean(each):.2f}", ", ".join(f"{x:.2f}" for x in each)])
    noise = result["noise"]
    lines.append(
        [
            "the probe's own noise: refits, bootstrap of pictures",
            "",
            f"{noise['refit_std']:.2f}, {noise['bootstrap_stderr']:.2f}",
        ]
    )
    lines += [
        [f"gate: {gate}", "holds" if holds else "**fails**", ""]
        for gate, holds in result["gates"].items()
    ]
    return markdown(lines)


def why(result: Mapping[str, Any]) -> list[str]:
    """The held-out feedback loss under fixed and refitted heads, arm minus plain."""
    steps = result["steps"]
    lines = [
        [
            "arm minus plain",
            "fixed heads, 1 step",
            f"fixed heads, {steps} steps",
            f"refitted heads, {steps} steps",
        ]
    ]
    for arm, run in result["runs"].items():
        base = result["runs"]["plain, teacher still" if arm.endswith("still") else "plain"]
        if run is base:
            continue
        refit = run["refitted"][str(steps)] - base["refitted"][str(steps)]
        fixed = [f"{run['fixed'][at] - base['fixed'][at]:+.4f}" for at in (1, steps)]
        lines.append([arm, *fixed, f"{refit:+.4f}"])
    return markdown(lines)


def meta_step(result: Mapping[str, Any]) -> list[str]:
    """Seconds and memory of the ways to the gradient of a mask."""
    lines = [["way to dV/d mask", "s", "times faster", "MiB", "share of memory", "cosine"]]
    for name, row in result["ways"].items():
        lines.append(
            [
                name.replace("_", " "),
                f"{row['seconds']:.2f}",
                f"{row['faster']:.2f}",
                f"{row['peak_bytes'] / 2**20:.0f}",
                f"{row['memory']:.2f}",
                f"{row['cosine']:.6f}",
            ]
        )
    return markdown(lines)


def plain_dino(result: Mapping[str, Any]) -> list[str]:
    """Milliseconds a step of this loop and of a straightforward one."""
    lines = [["plain DINO", "this loop, ms a step", "straightforward loop, ms a step", "ratio"]]
    for case, row in result["plain_dino"].items():
        taken = row["milliseconds_a_step"]
        lines.append(
            [
                case,
                f"{taken['vpretrain']:.0f}",
                f"{taken['straightforward']:.0f}",
                f"{row['ratio']:.2f}",
            ]
        )
    return markdown(lines)


def picture_gates(result: Mapping[str, Any]) -> list[str]:
    """What each way of training comes to on real pictures, and how far apart they are."""
    metric = result["metric"].split("/")[1]
    name, unit = (
        (NAMES[metric], "percent") if metric in PERCENT else ("depth RMSE, cm", "centimetres")
    )
    lines = [[f"{name}, dev pictures", "each seed"]]
    lines += [[kind, ", ".join(f"{x:.2f}" for x in each)] for kind, each in result[unit].items()]
    for gate, errors in result["standard_errors_apart"].items():
        verdict = "holds" if result["gates"][gate] else "**fails**"
        apart = ", ".join(f"{x:.1f}" for x in errors)
        lines.append([f"gate: {gate}", f"{verdict}: {apart} standard errors"])
    return markdown(lines)


def horizon(result: Mapping[str, Any]) -> list[str]:
    """What one steered step gains over a plain one, in thousandths of a nat."""
    steps = result["horizons"]

    def cell(row: Mapping[str, Any], kind: str, at: int) -> str:
        return f"{1e3 * row[kind][at]:+.2f} ±{1e3 * row[f'{kind}_stderr'][at]:.2f}"

    head = ["surface", "predicted", *(f"heads stay, {n}" for n in steps)]
    lines = [[*head, *(f"refitted, {n}" for n in steps)]]
    for name, row in result["rows"].items():
        kinds = [(kind, at) for kind in ("fixed", "refitted") for at in range(len(steps))]
        lines.append([name, cell(row, "predicted", 0), *(cell(row, *each) for each in kinds)])
    return markdown(lines)


def costs(result: Mapping[str, Any]) -> list[str]:
    """CPU milliseconds a step, and speed and memory beside plain steps."""
    lines = [["arm", "ms a step", "of plain's speed", "of its memory"]]
    for row in result["table"]:
        low, high = row["speed_range"]
        speed = f"{row['speed']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append([row["arm"], f"{1e3 * row['cpu_seconds']:.0f}", speed, f"{row['memory']:.2f}"])
    return markdown(lines)


KINDS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "standard_errors_apart": picture_gates,
    "steps_before": horizon,
    "finished_rounds": costs,
    "gates": gates,
    "reading": why,
    "ways": meta_step,
    "plain_dino": plain_dino,
}
"""By a key that results of that kind have."""


def table_of(
    result: Mapping[str, Any], metrics: set[str], rows: list[str], of: str | None
) -> list[str]:
    """The Markdown table of some results."""
    if of is not None:
        return pairwise(result, of) if of in result["summary"] else dependence(result, of)
    if "study" in result:
        return study(result, metrics, rows)
    return next(make(result) for key, make in KINDS.items() if key in result)


def filled(text: str, results: Path) -> str:
    """A page with every table that there are results for."""

    def block(match: re.Match[str]) -> str:
        mark, name, metrics, rows, of = match.groups()
        path = results / f"vision-{name}.json"
        if not path.is_file():
            return match.group(0)
        result = json.loads(path.read_text(encoding="utf-8"))
        chosen = [row.strip() for row in (rows or "").split(";") if row.strip()]
        return (
            mark
            + "\n".join(table_of(result, set(metrics.split()) if metrics else SUMMARY, chosen, of))
            + "\n"
        )

    return MARK.sub(block, text)


def main() -> None:
    """Fills both pages."""
    for page in (ROOT / "README.md", ROOT / "docs" / "vision.md"):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text, ROOT / "results")) != text:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
