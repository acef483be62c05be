"""Writes the measured tables into README.md, docs/results.md and docs/compared.md from the raw
results: no figure is typed by hand.

    python benchmarks/pages.py

Each `<!-- table: NAME -->` is followed by the table made from `results/NAME.json`, which
`benchmarks/steering.py`, `vpretrain compare` (its `compare.json`), `vpretrain doctor --json` or
`vpretrain probe` (its `probe.json`) wrote. With `<!-- table: NAME only A; B -->` the rows are the
baseline and those named.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import plots

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/results.md", "docs/compared.md")


def comparison(table: dict) -> list[str]:
    """Arms by metrics, step 0 first."""
    metrics = list(table["metrics"])
    seeds = len({run["seed"] for run in table["runs"]})
    head = ["arm"]
    for metric in metrics:
        head += [metric, f"difference to {table['runs'][0]['arm']} [95%]"]
    rows = [[*head, f"verdict on {metrics[0]}", "s/run"]]
    first = [f"step 0 ({seeds} seeds)"]
    for metric in metrics:
        first += [f"{table['step0'][metric]['value']:.4f}", ""]
    rows.append([*first, "", ""])
    for arm, result in table["summary"].items():
        row = [f"`{arm}`"]
        for metric in metrics:
            spread = result[metric]["std"]
            row.append(
                f"{result[metric]['mean']:.4f}" + ("" if spread is None else f" ±{spread:.4f}")
            )
            pair = table["paired"].get(arm, {}).get(metric)
            interval = (
                ""
                if not pair or not pair["ci95"]
                else f" [{pair['ci95'][0]:+.4f}, {pair['ci95'][1]:+.4f}]"
            )
            row.append("" if pair is None else f"{pair['difference']:+.4f}{interval}")
        pair = table["paired"].get(arm, {}).get(metrics[0])
        seconds = [run["seconds"] for run in table["runs"] if run["arm"] == arm]
        rows.append(
            [*row, pair["verdict"] if pair else "baseline", f"{sum(seconds) / len(seconds):.0f}"]
        )
    return markdown(rows)


def doctor(result: dict) -> list[str]:
    """Estimators by exactness and cost."""
    slowest = max(row["seconds"] for row in result["estimators"])
    rows = [["estimator", "cosine", "relative error", "ms", "of the slowest", "peak MiB"]]
    rows += [
        [
            f"`{row['name']}`",
            f"{row['cosine']:.7f}",
            f"{row['relative_error']:.1e}",
            f"{row['seconds'] * 1e3:.0f}",
            f"{row['seconds'] / slowest:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
        ]
        for row in result["estimators"]
    ]
    return markdown(rows)


def probe(result: dict) -> list[str]:
    """Correlations with their intervals."""
    rows = [["predicted drop against", "r [95%]"]]
    for name, r in result["pearson"].items():
        low, high = result["ci95"][name]
        rows.append([f"`{name}`: {PROBES.get(name, '')}", f"{r:.3f} [{low:.3f}, {high:.3f}]"])
    return markdown(rows)


def flops(result: dict) -> list[str]:
    """FLOPs over a plain step's, by steps from one meta step to the next."""
    ratios = result["ratio_of_flops"]
    rows = [["a meta step in", *next(iter(ratios.values()))]]
    rows += [[f"`{arm}`", *(f"{x:.2f}" for x in of_arm.values())] for arm, of_arm in ratios.items()]
    return markdown(rows)


PROBES = {
    "sgd_aligned": "plain value, SGD step on S",
    "sgd_full": "plain value, SGD step on all parameters",
    "adamw_plain": "plain value, the real AdamW step",
    "adamw_preconditioned": "optimizer-aware value on S, the real AdamW step",
    "adamw_preconditioned_full": "optimizer-aware value on all parameters, the real AdamW step",
    "adamw_update": "g_down against the update itself: what first order can reach",
    "sgd_lower_bound": "lower bound of Prop. 2.1, SGD step on S",
    "sgd_fresh_feedback": "plain value from fresh feedback rows, SGD step on S",
    "adamw_fresh_feedback": "optimizer-aware value from fresh feedback rows, the real AdamW step",
}


def markdown(rows: list[list[str]]) -> list[str]:
    """A Markdown table whose first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def study(table: dict, only: list[str]) -> list[str]:
    """Rows of a study against its first, step 0 on top; how hard each steered, and what it cost."""
    metrics = list(table["metrics"])
    shown = [
        row
        for row in table["summary"]
        if not only or row in only or row == next(iter(table["rows"]))
    ]
    pairs = {row: len({run["seed"] for run in table["runs"] if run["arm"] == row}) for row in shown}
    head = ["row"]
    for metric in metrics:
        head += [metric, "difference [95%]"]
    rows = [[*head, "verdict", "steering", "reliability", "s/run"]]
    first = ["step 0"]
    for metric in metrics:
        starts = [start[metric]["value"] for start in table["step0"].values()]
        first += [" / ".join(f"{value:.4f}" for value in starts), ""]
    rows.append([*first, "", "", "", ""])
    for row in shown:
        runs = [run for run in table["runs"] if run["arm"] == row]
        line = [row if len(set(pairs.values())) == 1 else f"{row} ({pairs[row]})"]
        for metric in metrics:
            result = table["summary"][row][metric]
            spread = "" if result["std"] is None else f" ±{result['std']:.4f}"
            pair = table["paired"].get(row, {}).get(metric)
            interval = (
                ""
                if not pair or not pair["ci95"]
                else f" [{pair['ci95'][0]:+.4f}, {pair['ci95'][1]:+.4f}]"
            )
            line += [
                f"{result['mean']:.4f}{spread}",
                "" if pair is None else f"{pair['difference']:+.4f}{interval}",
            ]
        pair = table["paired"].get(row, {}).get(metrics[0])
        verdict = "baseline" if pair is None else pair["verdict"] if pair["ci95"] else ""
        rows.append(
            [*line, verdict, *_steering(runs), f"{_mean(run['seconds'] for run in runs):.0f}"]
        )
    return markdown(rows)


def course(table: dict) -> list[str]:
    """How a study's rows went: the first metric along the run, and what the designer did in each
    quarter, means over pairs.
    """
    metric = next(iter(table["metrics"]))
    rows = [["row", f"{metric} after each quarter", "gate", "gain on feedback not used"]]
    for row in table["summary"]:
        runs = [run for run in table["runs"] if run["arm"] == row]
        points = [len(runs[0]["curve"]) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        scores = [f"{_mean(run['curve'][at][2] for run in runs):.4f}" for at in points]
        line = [row, ", ".join(scores)]
        for key in ("gate", "gain"):
            known = [run["quarters"][key] for run in runs if key in run["quarters"]]
            means = [_mean(each) for each in zip(*known, strict=True)]
            line.append(", ".join(f"{mean:.4f}" for mean in means))
        rows.append(line)
    return markdown(rows)


def _steering(runs: list[dict]) -> list[str]:
    """How far the task was from the plain one (mean mass off the true token, spread of weights),
    and how far trusted.
    """
    size = []
    for key, word in (("gate", "gate"), ("weight_spread", "spread")):
        result = [run["means"][key] for run in runs if key in run["means"]]
        if result and max(result) > 1e-4:
            size.append(f"{word} {_mean(result):.3f}")
    trusted = [run["means"]["reliability"] for run in runs if "reliability" in run["means"]]
    return [", ".join(size), f"{_mean(trusted):.2f}" if trusted else ""]


def _mean(figures: Iterable[float]) -> float:
    figures = list(figures)
    return sum(figures) / len(figures)


def horizon(result: dict) -> list[str]:
    """Realised gain of one steered step, at each horizon, beside its first-order prediction."""
    rows = [
        [
            "tilt",
            "first order",
            *(f"realised, {steps} step{'s' * (steps > 1)}" for steps in result["horizons"]),
        ]
    ]
    for row in result["rows"]:
        pairs = zip(row["realised"], row["stderr"], strict=True)
        realised = [f"{1e5 * mean:.1f} ±{1e5 * error:.1f}" for mean, error in pairs]
        rows.append([f"{row['tilt']}", f"{1e5 * row['predicted']:.1f}", *realised])
    return markdown(rows)


def with_table(text: str, mark: str, lines: list[str]) -> str:
    """A page with these lines in the place of the table that follows the mark."""
    block = re.compile(rf"({re.escape(mark)}\n)(?:\|.*\n)*")
    return block.sub(lambda match: match.group(1) + "\n".join(lines) + "\n", text)


def main() -> None:
    """Replaces every table whose results are there, and draws the plots."""
    plots.draw()
    for page in (ROOT / name for name in PAGES):
        text = page.read_text(encoding="utf-8")
        for mark, name, only in re.findall(r"(<!-- table: ([\w-]+)(?: only ([^>]*?))? -->)", text):
            path = ROOT / "results" / f"{name}.json"
            if not path.is_file():
                continue
            result = json.loads(path.read_text(encoding="utf-8"))
            chosen = [row.strip() for row in only.split(";") if row.strip()]
            if "study" in result:
                special = {
                    "reached": lambda result: markdown(plots.reached(result)),
                    "course": course,
                }
                lines = special[only](result) if only in special else study(result, chosen)
            elif "horizons" in result:
                lines = horizon(result)
            elif "ratio_of_flops" in result:
                lines = flops(result)
            else:
                kind = (
                    doctor
                    if "estimators" in result
                    else probe
                    if "pearson" in result
                    else comparison
                )
                lines = kind(result)
            text = with_table(text, mark, lines)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
