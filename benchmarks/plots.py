"""The plots of docs/results.md, drawn from `results/*.json`; `python benchmarks/pages.py` calls
this.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).parent.parent
COLOURS = {
    "onehot": "#666666",
    "document_weights": "#0b6e4f",
    "token_weights": "#c8553d",
    "closed_form": "#3f88c5",
}
REGIMES = {
    "majority": "majority noise",
    "minority": "minority noise",
    "regime-random": "random noise",
    "regime-format": "another format",
    "regime-irrelevant": "mostly irrelevant",
    "regime-off-target": "off-target feedback",
    "gsm8k-noisy": "GSM8K, noisy stream",
    "gsm8k": "GSM8K, as it is",
}


def read(name: str) -> dict[str, Any] | None:
    """A study's results, if they are there."""
    path = ROOT / "results" / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return result if result and "study" in result else None


def regimes(out: Path) -> None:
    """Relative change of the held-out NLL against one-hot, with its interval, by regime and arm."""
    studies = [
        (description, result) for name, description in REGIMES.items() if (result := read(name))
    ]
    figure, axes = pyplot.subplots(figsize=(7.2, 0.62 * len(studies) + 1.2), layout="constrained")
    arms = ["document_weights", "token_weights", "closed_form", "fixed_random_direction"]
    for line, (_, result) in enumerate(studies):
        base = result["summary"]["onehot"]["test/nll"]["mean"]
        shown = [arm for arm in arms if arm in result["paired"]]
        for at, arm in enumerate(shown):
            pair = result["paired"][arm]["test/nll"]
            low, high = pair["ci95"] or (pair["difference"],) * 2
            place = line + 0.16 * (at - (len(shown) - 1) / 2)
            colour = COLOURS.get(arm, "#bbbbbb")
            axes.plot(
                [100 * low / base, 100 * high / base], [place, place], color=colour, linewidth=2
            )
            label = arm if arm not in axes.get_legend_handles_labels()[1] else None
            axes.plot(
                100 * pair["difference"] / base, place, "o", color=colour, markersize=5, label=label
            )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(studies)), [description for description, _ in studies])
    axes.invert_yaxis()
    axes.set_xlabel("held-out NLL against one-hot, percent (95% interval over starts and seeds)")
    axes.legend(frameon=False, fontsize=8, loc="best")
    figure.savefig(out / "regimes.png", dpi=150)
    pyplot.close(figure)


def efficiency(out: Path) -> None:
    """Held-out NLL over steps and over seconds, every run thin and their mean thick."""
    result = read("efficiency")
    if result is None:
        return
    figure, sides = pyplot.subplots(1, 2, figsize=(8.4, 3.4), sharey=True, layout="constrained")
    for axes, column, label in (
        (sides[0], 0, "learner steps"),
        (sides[1], 1, "seconds of training"),
    ):
        for arm in result["rows"]:
            curves = [run["curve"] for run in result["runs"] if run["arm"] == arm]
            start = statistics.fmean(s["test/nll"]["value"] for s in result["step0"].values())
            mean = [[0.0, start]] + [
                [
                    statistics.fmean(c[at][column] for c in curves),
                    statistics.fmean(c[at][2] for c in curves),
                ]
                for at in range(len(curves[0]))
            ]
            colour = COLOURS.get(arm, "#bbbbbb")
            for curve in curves:
                axes.plot(
                    [p[column] for p in curve],
                    [p[2] for p in curve],
                    color=colour,
                    linewidth=0.7,
                    alpha=0.5,
                )
            axes.plot(*zip(*mean, strict=True), color=colour, linewidth=2.2, label=arm)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    sides[0].set_ylabel("held-out NLL")
    sides[0].legend(frameon=False)
    figure.savefig(out / "efficiency.png", dpi=150)
    pyplot.close(figure)


def reached(result: dict[str, Any]) -> list[list[str]]:
    """Steps and seconds after which an arm was where one-hot ended, by interpolation, relative to
    one-hot's; by start.
    """
    rows = [["row", "steps to one-hot's final NLL", "of its steps", "of its seconds"]]
    for arm in list(result["rows"])[1:]:
        fractions = []
        for run in (run for run in result["runs"] if run["arm"] == arm):
            base = next(
                r for r in result["runs"] if r["arm"] == "onehot" and r["seed"] == run["seed"]
            )
            start = result["step0"][run["seed"].split("/")[0]]["test/nll"]["value"]
            goal = base["final"]["test/nll"]
            before = [0, 0.0, start]
            if start <= goal:  # one-hot lost: its end was reached before the first step
                fractions.append((0.0, 0.0, 0.0))
                continue
            for point in run["curve"]:
                if point[2] <= goal:
                    part = (before[2] - goal) / (before[2] - point[2])
                    at = [before[i] + part * (point[i] - before[i]) for i in (0, 1)]
                    fractions.append((at[0], at[0] / base["steps"], at[1] / base["seconds"]))
                    break
                before = point
        means = [statistics.fmean(fraction[i] for fraction in fractions) for i in range(3)]
        spread = [statistics.stdev(fraction[i] for fraction in fractions) for i in range(3)]
        rows.append(
            [
                arm,
                *(
                    f"{m:.{d}f} ±{s:.{d}f}"
                    for m, s, d in zip(means, spread, (0, 2, 2), strict=True)
                ),
            ]
        )
    return rows


def horizon(out: Path) -> None:
    """Gain of one steered step after further plain steps, at the recipe's learning rate and at a
    small one.
    """
    names = {"horizon-slow": "learning rate 5e-5", "horizon": "learning rate 2e-4"}
    paths = {name: ROOT / "results" / f"{name}.json" for name in names}
    if not all(path.is_file() for path in paths.values()):
        return
    figure, sides = pyplot.subplots(1, 2, figsize=(8.4, 3.2), sharey=True, layout="constrained")
    for axes, (name, description) in zip(sides, names.items(), strict=True):
        result = json.loads(paths[name].read_text(encoding="utf-8"))
        for row, colour in zip(result["rows"], ("#3f88c5", "#0b6e4f", "#c8553d"), strict=True):
            gains, errors = ([1e5 * x for x in row[key]] for key in ("realised", "stderr"))
            low, high = (
                [g + sign * e for g, e in zip(gains, errors, strict=True)] for sign in (-1, 1)
            )
            axes.plot(
                result["horizons"],
                gains,
                "o-",
                color=colour,
                markersize=4,
                label=f"tilt {row['tilt']}",
            )
            axes.fill_between(result["horizons"], low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(result["horizons"], [str(steps) for steps in result["horizons"]])
        axes.set_title(description, fontsize=10)
        axes.set_xlabel("steps, the first one steered")
        axes.spines[["top", "right"]].set_visible(False)
    sides[0].set_ylabel("gain in held-out NLL, 1e-5 nats")
    sides[0].legend(frameon=False, fontsize=8)
    figure.savefig(out / "horizon.png", dpi=150)
    pyplot.close(figure)


def draw() -> None:
    """All plots whose results are there."""
    out = ROOT / "docs" / "images"
    regimes(out)
    efficiency(out)
    horizon(out)
