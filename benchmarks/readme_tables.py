"""Writes the measured tables into README.md from the raw results, so that no figure is typed by hand.

    python benchmarks/readme_tables.py

Each `<!-- table: NAME -->` is followed by the table made from `results/NAME.json`, which `vpretrain compare` (its
`compare.json`) `vpretrain doctor --json` or `vpretrain probe` (its `probe.json`) wrote.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
    for arm, found in table["summary"].items():
        row = [f"`{arm}`"]
        for metric in metrics:
            spread = found[metric]["std"]
            row.append(f"{found[metric]['mean']:.4f}" + ("" if spread is None else f" ±{spread:.4f}"))
            pair = table["paired"].get(arm, {}).get(metric)
            interval = "" if not pair or not pair["ci95"] else f" [{pair['ci95'][0]:+.4f}, {pair['ci95'][1]:+.4f}]"
            row.append("" if pair is None else f"{pair['difference']:+.4f}{interval}")
        pair = table["paired"].get(arm, {}).get(metrics[0])
        seconds = [run["seconds"] for run in table["runs"] if run["arm"] == arm]
        rows.append([*row, pair["verdict"] if pair else "baseline", f"{sum(seconds) / len(seconds):.0f}"])
    return markdown(rows)


def doctor(found: dict) -> list[str]:
    """Estimators by exactness and cost."""
    slowest = max(row["seconds"] for row in found["estimators"])
    rows = [["estimator", "cosine", "relative error", "ms", "of the slowest", "peak MiB"]]
    rows += [
        [
            f"`{row['name']}`", f"{row['cosine']:.7f}", f"{row['relative_error']:.1e}", f"{row['seconds'] * 1e3:.0f}",
            f"{row['seconds'] / slowest:.2f}", f"{row['peak_bytes'] / 2**20:.0f}",
        ]
        for row in found["estimators"]
    ]  # fmt: skip
    return markdown(rows)


def probe(found: dict) -> list[str]:
    """Correlations with their intervals."""
    rows = [["predicted drop against", "r [95%]"]]
    for name, r in found["pearson"].items():
        low, high = found["ci95"][name]
        rows.append([f"`{name}`: {PROBES.get(name, '')}", f"{r:.3f} [{low:.3f}, {high:.3f}]"])
    return markdown(rows)


PROBES = {
    "sgd_aligned": "plain value, SGD step on S",
    "sgd_full": "plain value, SGD step on all parameters",
    "adamw_plain": "plain value, the real AdamW step",
    "adamw_preconditioned": "optimizer-aware value on S, the real AdamW step",
    "adamw_preconditioned_full": "optimizer-aware value on all parameters, the real AdamW step",
    "adamw_update": "g_down against the update itself: what first order can reach",
    "sgd_lower_bound": "lower bound of Prop. 2.1, SGD step on S",
    "sgd_heard": "plain value from fresh feedback rows, SGD step on S",
    "adamw_heard": "optimizer-aware value from fresh feedback rows, the real AdamW step",
}


def markdown(rows: list[list[str]]) -> list[str]:
    """A Markdown table whose first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def main() -> None:
    """Replaces every table of README.md whose results are there."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name in re.findall(r"<!-- table: ([\w-]+) -->", text):
        path = ROOT / "results" / f"{name}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        kind = doctor if "estimators" in found else probe if "pearson" in found else comparison
        lines = kind(found)
        block = re.compile(rf"(<!-- table: {name} -->\n)(?:\|.*\n)*")
        text = block.sub(lambda match, lines=lines: match.group(1) + "\n".join(lines) + "\n", text)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
