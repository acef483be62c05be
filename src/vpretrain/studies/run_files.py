"""Files of a comparison's runs: their paths, writing, and validated reading."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vpretrain.run.scores import Score
from vpretrain.run.train import Result
from vpretrain.system.errors import UserError, shortened, user_error
from vpretrain.system.files import read_json, write_json

Pair = tuple[str, int]
"""Arm and seed."""
_NEEDED = {"arm", "seed", "steps", "tokens_or_images", "seconds", "stream_digest", "final"}


def entry_path(out: Path, arm: str, seed: int) -> Path:
    """Returns the path of a finished run's entry."""
    return out / "runs" / f"{arm}-{seed}.json"


def checkpoints_path(out: Path, arm: str, seed: int) -> Path:
    """Returns the folder of an unfinished run's checkpoints."""
    return entry_path(out, arm, seed).with_suffix(".checkpoints")


def as_json(result: Result) -> dict[str, Any]:
    """Returns a run's entry of ``runs`` in ``compare.json``."""
    return {
        "arm": result.arm,
        "seed": result.seed,
        "steps": result.spent.steps,
        "tokens_or_images": result.spent.tokens,
        "flops": result.spent.flops,
        "seconds": round(result.spent.seconds, 2),
        "stream_digest": result.stream_digest,
        "batches": result.batches,
        "draws": result.draws,
        "drawn": result.drawn,
        "final": {name: score.value for name, score in result.final.items()},
    }


def scores_of_step0(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Returns ``step0`` and ``metrics`` of ``compare.json``, from scores of the untouched model."""
    return {
        "step0": {n: {"value": s.value, "stderr": s.stderr, "n": s.n} for n, s in scores.items()},
        "metrics": {n: {"higher_is_better": s.higher_is_better} for n, s in scores.items()},
    }


def write_entry(path: Path, entry: Mapping[str, Any], final: Mapping[str, Score]) -> None:
    """Writes the entry of a finished run, after its values on each held-out item."""
    items = {name: [round(x, 6) for x in score.items] for name, score in final.items()}
    write_json(path.with_suffix(".items.json"), items)
    write_json(path, entry)


def read_entry(path: Path, pair: Pair) -> dict[str, Any]:
    """Reads the entry of a run.

    Raises:
        UserError: the file holds no valid entry of this run.
    """
    entry = read_result(path, _NEEDED)
    if (entry["arm"], entry["seed"]) != pair:
        raise _not_whole(path, "it is of another arm or seed")
    scores = entry["final"].values() if isinstance(entry["final"], dict) else [None]
    for figure in (*scores, entry["seconds"]):
        if not isinstance(figure, (int, float)) or not math.isfinite(figure):
            raise _not_whole(path, f"{figure} is no figure")
    return entry


def read_result(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: the file holds no object with these keys.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise _not_whole(path, str(error)) from None
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        raise _not_whole(path, f"it is no object with {', '.join(sorted(keys))}")
    return value


def read_items(path: Path) -> dict[str, list[float]]:
    """Reads each metric's values, one per held-out item.

    Raises:
        UserError: the file holds something else.
    """
    items = read_result(path)
    for name, figures in items.items():
        if not isinstance(figures, list) or not figures:
            raise _not_whole(path, f"{name} is no list of figures")
        for figure in figures:
            if not isinstance(figure, (int, float)) or not math.isfinite(figure):
                raise _not_whole(path, f"{figure} in {name} is no figure")
    return items


def _not_whole(path: Path, why: str) -> UserError:
    run = path.name.partition(".")[0]
    message = (
        f"this result is not whole ({shortened(why)}); remove {run}.* there, and the same command "
        "runs what is missing"
    )
    return user_error(str(path), message)
