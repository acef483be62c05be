"""What a learned designer keeps of its gain where it is carried to without feedback: another seed,
another learner.

    python benchmarks/portability.py [key=value ...] [--seeds 3]

One run of the arm on demo-language leaves a designer. Then, seed by seed and on the same batches:
one-hot targets, a designer that learns from feedback throughout, and the saved one, frozen. First
on the learner that it was trained with, then on a learner of another origin (the packaged
checkpoint of the minority regime: same tokenizer, another stream and other random weights), where
it reads either that learner's hidden states or those of its own old model (`designer.companion`).
Gain is the held-out NLL of one-hot less the arm's; what is kept is the ratio of mean gains,
carried over learning. Writes `results/portability.json`."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vpretrain.config import recipe as recipes
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.run.folder import environment
from vpretrain.run.launch import train_one
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.studies.statistics import paired_difference
from vpretrain.system.files import write_json

TEACHER_SEED = 100
LEARNERS = {"same": "word-problems-majority", "other": "word-problems-minority"}
COMMON = ["arm=field", "evaluate.every=0", "evaluate.answer=null"]


def final_nll(overrides: list[str], materials: dict[str, Any]) -> float:
    """Held-out NLL at the end of one run; data is read once a learner."""
    recipe = recipes.load("demo-language", [*COMMON, *overrides], schemas=SCHEMAS)
    assert isinstance(recipe, LanguageRecipe) and recipe.learner.model is not None
    modality = MODALITIES[recipe.modality]()
    name = recipe.learner.model
    if name not in materials:
        materials[name] = modality.load(recipe)
    result = train(Run(recipe, modality.build(recipe, materials[name]), step0={}))
    return result.final[f"{recipe.evaluate.split}/nll"].value


def main() -> None:
    """Runs, and prints one line an arm."""
    seeds = int(sys.argv[sys.argv.index("--seeds") + 1]) if "--seeds" in sys.argv else 3
    given = [word for word in sys.argv[1:] if "=" in word]
    started = time.perf_counter()
    materials: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        teacher = recipes.load(
            "demo-language", [*COMMON, *given, f"seed={TEACHER_SEED}"], schemas=SCHEMAS
        )
        train_one(teacher, Path(scratch), lambda record, fraction: None)
        frozen = [f"designer.init_from={scratch}", "designer.frozen=true"]
        cases = {
            "same": {"onehot": ["arm=onehot"], "hearing": [], "carried": frozen},
            "other": {
                "onehot": ["arm=onehot"],
                "hearing": [],
                "carried": frozen,
                "carried, companion": [*frozen, "designer.companion=true"],
            },
        }
        result: dict[str, Any] = {}
        for learner, arms in cases.items():
            nll: dict[str, list[float]] = {arm: [] for arm in arms}
            for seed in range(seeds):
                for arm, overrides in arms.items():
                    words = [
                        *given,
                        f"learner.model={LEARNERS[learner]}",
                        f"seed={seed}",
                        *overrides,
                    ]
                    nll[arm].append(final_nll(words, materials))
            result[learner] = summary(nll)
            for arm, row in result[learner].items():
                print(f"{learner:6} {arm:20} {row}", flush=True)
    write_json(
        Path("results/portability.json"),
        {
            "recipe": "demo-language",
            "overrides": [*COMMON, *given],
            "teacher_seed": TEACHER_SEED,
            "seeds": seeds,
            "metric": "test/nll",
            "learners": LEARNERS,
            "found": result,
            "seconds": round(time.perf_counter() - started),
            "environment": environment(),
        },
    )


def summary(nll: dict[str, list[float]]) -> dict[str, Any]:
    """By arm: NLL of every seed, the mean gain over one-hot with its interval, and the share kept
    of ``hearing``'s.
    """
    rows: dict[str, Any] = {}
    heard = statistics.mean(nll["onehot"]) - statistics.mean(nll["hearing"])
    for arm, values in nll.items():
        rows[arm] = {"nll": [round(value, 5) for value in values]}
        if arm == "onehot":
            continue
        gains = [base - value for base, value in zip(nll["onehot"], values, strict=True)]
        rows[arm]["gain"] = round(statistics.mean(gains), 5)
        interval = paired_difference(
            nll["onehot"], values
        ).ci95  # one-hot less the arm, so that up is good
        rows[arm]["ci95"] = None if interval is None else [round(end, 5) for end in interval]
        rows[arm]["kept"] = round(statistics.mean(gains) / heard, 3) if heard > 0 else None
    return rows


if __name__ == "__main__":
    main()
