"""Comparison and run folders as `compare` and `train` write them, with made-up numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vpretrain.studies.statistics import paired_table

METRICS = {"test/nll": False, "test/pass@1": True}
ENVIRONMENT = {
    "versions": {"vpretrain": "0.1.0", "torch": "2.13.0+cpu"},
    "python": "3.11.7",
    "system": "Linux",
    "processor": "made up",
    "cores": 2,
    "accelerator": None,
    "threads": 1,
    "git_commit": "4a119e1a7d25f6ed762df9355abb38c87be2c7c0",
    "command": "vpretrain compare demo-language --arms onehot,closed_form",
}
# How far an arm takes a score from step 0 to perfect, by the end.
ROLES = {"onehot": "baseline", "random_feedback": "control"}
GAINS = {"onehot": 0.1, "field": 0.45, "closed_form": 0.6, "random_feedback": 0.12}


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "modality": "language",
        "description": "word problems whose stream is mostly wrong where it matters",
        "seed": 0,
        "arm": "onehot",
        "budget": {"steps": 60, "tokens": None, "seconds": None},
        "evaluate": {"every": 12, "split": "test"},
        "learner": {"model": "made-up", "learning_rate": 5e-5},
        **changes,
    }


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def start_of(metric: str, higher: bool) -> float:
    return 0.55 if higher else 0.8 + 0.01 * len(metric)


def records(
    arm: str, seed: int, steps: int, every: int, metrics: Mapping[str, bool], gain: float
) -> list[dict[str, Any]]:
    draw = random.Random(f"{arm}{seed}")
    stream = random.Random(seed)
    uses_feedback = arm != "onehot"
    result: list[dict[str, Any]] = []
    tokens, seconds = 0, 2.0
    for step in range(1, steps + 1):
        tokens += 1480 + stream.randrange(20)
        meta = uses_feedback and step % 4 == 1
        seconds += 0.12 + 0.05 * uses_feedback + 0.12 * meta + 0.01 * draw.random()
        done = 1 - math.exp(-3 * step / steps)
        record: dict[str, Any] = {
            "step": step,
            "tokens": tokens,
            "flops": 2e10 * step,
            "seconds": round(seconds, 3),
        }
        if meta:
            worth = 0.003 * (0.0 if arm == "random_feedback" else 1) * (1 - 0.5 * done)
            record |= {
                "gain": worth + 0.0006 * draw.gauss(0, 1),
                "agreement": (0.02 if arm == "random_feedback" else 0.5) + 0.05 * draw.gauss(0, 1),
                "gate": 0.06 * done,
                "entropy": 0.1 * done,
                "gradient_norm_downstream": 0.13 + 0.02 * draw.random(),
                "cosine": 0.08 + 0.02 * draw.gauss(0, 1),
                "value": worth * 2 + 0.001 * draw.gauss(0, 1),
                "seconds_meta": 0.12,
            }
        record |= {
            "seconds_designer": 0.04 if uses_feedback else 0.0002,
            "loss": 0.66 - 0.05 * done + 0.04 * stream.gauss(0, 1) + 0.005 * draw.gauss(0, 1),
            "learning_rate": 5e-5 * min(1, step / 5),
            "gradient_norm": 0.2 + 0.03 * stream.random(),
            "steered": float(uses_feedback),
            "seconds_data": 0.002,
            "tokens_per_second": 11_000 - 4000.0 * uses_feedback,
            "batch": f"{step:016x}",
        }
        if every and step % every == 0:
            for metric, higher in metrics.items():
                record[metric] = score(metric, higher, gain * done, draw)
        result.append(record)
    return result


def score(metric: str, higher: bool, done: float, draw: random.Random) -> float:
    start = start_of(metric, higher)
    return start + ((1 - start) if higher else -start) * done + 0.004 * draw.gauss(0, 1)


def comparison(
    folder: Path,
    *,
    arms: Sequence[str] = ("onehot", "closed_form", "random_feedback"),
    seeds: int = 3,
    steps: int = 60,
    every: int = 12,
    metrics: Mapping[str, bool] = METRICS,
    description: str | None = None,
    gains: Mapping[str, float] = GAINS,
    changes: Mapping[str, Any] | None = None,
    unit: str = "tokens",
) -> Path:
    """A finished comparison; `changes` go into the recipe."""
    made = recipe(**(changes or {}))
    made["evaluate"]["every"] = every
    if description is not None:
        made["description"] = description
    meaning = {name: {"higher_is_better": higher} for name, higher in metrics.items()}
    step0 = {
        name: {"value": start_of(name, higher), "stderr": 0.02, "n": 600}
        for name, higher in metrics.items()
    }
    runs = []
    (folder / "runs").mkdir(parents=True)
    for seed in range(seeds):
        for arm in arms:
            gain = gains.get(arm, 0.3)
            lines = records(arm, seed, steps, every, metrics, gain)
            draw = random.Random(f"final{arm}{seed}")
            entry = {
                "arm": arm,
                "seed": seed,
                "steps": steps,
                "tokens_or_images": int(lines[-1]["tokens"]),
                "flops": 2e10 * steps,
                "seconds": lines[-1]["seconds"],
                "stream_digest": f"{seed:016x}",
                "final": {
                    name: score(name, higher, gain * 0.95, draw) for name, higher in metrics.items()
                },
            }
            runs.append(entry)
            stem = f"{arm}-{seed}".replace("/", "_")
            write(folder / "runs" / f"{stem}.json", entry)
            write(folder / "runs" / f"{stem}.items.json", {name: [0.0, 1.0] for name in metrics})
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "runs" / f"{stem}.metrics.jsonl").write_text(text, encoding="utf-8")
    write(folder / "runs" / "step0.json", {"unit": unit, "step0": step0, "metrics": meaning})
    summary, paired = paired_table(runs, meaning, arms[0])
    for result in [result for by_metric in paired.values() for result in by_metric.values()]:
        result["items"] = {
            "ci95": [result["difference"] - 0.01, result["difference"] + 0.01],
            "p": 0.01,
        }
    pairs, controls = {}, [arm for arm in arms if ROLES.get(arm) == "control"]
    if controls and len(arms) > 2 and arms[1] not in ROLES:
        chosen = [run for run in runs if run["arm"] in (arms[1], *controls)]
        pairs[arms[1]] = paired_table(chosen, meaning, arms[1])[1]
    write(
        folder / "compare.json",
        {
            "recipe": made["description"],
            "modality": made["modality"],
            "match": "steps",
            "budget": steps,
            "unit": unit,
            "arms": dict.fromkeys(arms, "what it does"),
            "roles": {arm: ROLES.get(arm, "treatment") for arm in arms},
            "metrics": meaning,
            "step0": step0,
            "runs": runs,
            "summary": summary,
            "paired": paired,
            "control_pairs": pairs,
            "environment": ENVIRONMENT,
        },
    )
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(made, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    return folder


def run_folder(
    folder: Path, *, arm: str = "closed_form", seed: int = 0, finished: bool = True, **changes: Any
) -> Path:
    """What `train` leaves; unfinished ones have no result.json."""
    made = recipe(arm=arm, seed=seed, **changes)
    lines = records(arm, seed, 60, 12, METRICS, GAINS.get(arm, 0.3))
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    write(folder / "environment.json", ENVIRONMENT)
    if finished:
        last = lines[-1]
        write(
            folder / "result.json",
            {
                "run_dir": str(folder),
                "arm": arm,
                "unit": "tokens",
                "steps": 60,
                "tokens_or_images": int(last["tokens"]),
                "seconds": last["seconds"],
                "step0": {name: start_of(name, higher) for name, higher in METRICS.items()},
                "final": {name: last[name] for name in METRICS},
            },
        )
    return folder
