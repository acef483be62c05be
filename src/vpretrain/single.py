"""``train``: one run and the folder it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vpretrain.flops import count
from vpretrain.modalities import MODALITIES
from vpretrain.recipe import Recipe
from vpretrain.tracking import RunFolder, write_json
from vpretrain.train import Record, new_step, run, seed_everything


def train_one(recipe: Recipe, folder: Path, each_step: Callable[[Record, float], None]) -> dict[str, Any]:
    """Trains once; the folder appears only after data, model and arm were found to be in order.

    Args:
        recipe: every value of the run.
        folder: gets ``recipe.yaml``, ``environment.json``, ``metrics.jsonl``, ``model/``, ``designer/``, ``result.json``, and
            ``checkpoints/step-N/`` (model folders) where the recipe asks for them.
        each_step: is given every step's record and the share of the budget that is used.

    Returns:
        ``{run_dir, arm, steps, tokens_or_images, seconds, step0: {metric: value}, final: {metric: value}}``.
    """
    seed_everything(recipe)
    modality = MODALITIES[recipe.modality]()
    materials = modality.load(recipe)
    counted = modality.build(recipe, materials)
    cost = count(new_step(recipe, counted), counted)
    parts = modality.build(recipe, materials)
    out = RunFolder(folder, recipe)

    def log(record: Record, share: float) -> None:
        out.log(record)
        if recipe.checkpoint.every and record["step"] % recipe.checkpoint.every == 0:
            parts.save(folder / "checkpoints" / f"step-{record['step']:07d}")
        each_step(record, share)

    try:
        result = run(recipe, parts, cost=cost, each_step=log)
    finally:
        out.close()
    parts.save(folder / "model")
    (folder / "designer").mkdir(exist_ok=True)
    torch.save(parts.designer.state_dict(), folder / "designer" / "state.pt")  # read back with weights_only
    found = {
        "run_dir": str(folder),
        "arm": result.arm,
        "steps": result.spent.steps,
        "tokens_or_images": result.spent.tokens,
        "seconds": result.spent.seconds,
        "step0": {name: score.value for name, score in result.step0.items()},
        "final": {name: score.value for name, score in result.final.items()},
    }
    write_json(folder / "result.json", found)
    return found
