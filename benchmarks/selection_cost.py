"""What choosing costs: FLOPs of a step over a plain one's, by steps from one meta step to the next.

    python benchmarks/selection_cost.py [RECIPE] [--out results/selection-cost.json]

Counted on one step of each kind, for the recipe's learner and batches; written as ratios.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vpretrain.config import recipe as recipes
from vpretrain.run.build import new_step
from vpretrain.run.flops import Cost, count
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.system.files import write_json

ROOT = Path(__file__).parent.parent
RECIPE = "recipes/language/regimes/mostly-irrelevant.yaml"
ARMS = ("document_weights", "greats_topk", "repeat_topk")
PERIODS = (4, 8, 16, 32, 64)


def main() -> None:
    """Counts, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default=RECIPE)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "selection-cost.json")
    options = parser.parse_args()

    def recipe_of(arm: str) -> recipes.Recipe:
        source = options.recipe
        source = str(ROOT / source) if source.endswith(".yaml") else source
        return recipes.load(source, [f"arm={arm}"], schemas=SCHEMAS)

    modality = MODALITIES[recipe_of("onehot").modality]()
    materials = modality.load(recipe_of("onehot"))

    def cost(arm: str) -> Cost:
        recipe = recipe_of(arm)
        parts = modality.build(recipe, materials)
        return count(new_step(recipe, parts), parts)

    plain, ratios = cost("onehot").plain, {}
    for arm in ARMS:
        result = cost(arm)
        ratios[arm] = {
            str(period): round((result.steered * (period - 1) + result.meta) / period / plain, 3)
            for period in PERIODS
        }
        print(arm, ratios[arm], flush=True)
    about = {key: what for key, what in environment().items() if key != "command"}
    command = f"python benchmarks/selection_cost.py {options.recipe}"
    write_json(
        options.out,
        {"command": command, "ratio_of_flops": ratios, "environment": about},
    )


if __name__ == "__main__":
    main()
