"""Whether a set of real pictures and a small learner can tell one way of pretraining from another.

    python benchmarks/picture_gates.py cifar10 --data DIR [--seeds 2] [--out FILE]
    python benchmarks/picture_gates.py nuclei --data DIR
    python benchmarks/picture_gates.py room --data DIR

DIR is what `benchmarks/cifar10.py`, `nuclei.py` or `room.py` wrote. The probe of
`recipes/vision/NAME.yaml` on the dev pictures is asked of random weights, the prepared learner, its
plain continuation, the arm `direct` (which trains on labels too) and the same backbone trained on
the stream's labels from end to end. A gate holds where the second of two is better than the first
by three standard errors or more in every seed, picture by picture.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy
import torch
from torch import nn
from vision_parts import picture_learner, prepared_config, vision_recipe

from vpretrain.run.folder import environment
from vpretrain.run.run import Run
from vpretrain.run.scores import Score
from vpretrain.run.train import train
from vpretrain.system.files import write_json
from vpretrain.vision import Vision
from vpretrain.vision.backbone import Backbone
from vpretrain.vision.data.images import normalised
from vpretrain.vision.data.loading import read
from vpretrain.vision.evaluation.measure import evaluate
from vpretrain.vision.feedback.features import LastBlocks
from vpretrain.vision.feedback.tasks import mean_loss
from vpretrain.vision.loading import new_model
from vpretrain.vision.recipe import VisionRecipe

RECIPES = Path(__file__).parent.parent / "recipes/vision"
PROBES = {
    "cifar10": ("classification", "accuracy", "percent"),
    "nuclei": ("segmentation", "miou", "percent"),
    "room": ("depth", "depth_rmse", "centimetres"),
}
"""Probe, metric, and what a hundredth of the metric is."""
ORDER = ("random weights", "plain", "direct", "supervised")


class Supervised(TypedDict):
    """How the same backbone is trained on labels."""

    steps: int
    batch_size: int
    learning_rate: float


SUPERVISED: Supervised = {"steps": 3000, "batch_size": 32, "learning_rate": 2e-3}


def loaded(name: str, data: Path, *overrides: str) -> VisionRecipe:
    """The recipe on dev."""
    words = [f"data.root={data}", "evaluate.split=dev", f"evaluate.probes=[{PROBES[name][0]}]"]
    return vision_recipe(str(RECIPES / f"{name}.yaml"), [*words, *overrides])


def supervised(name: str, recipe: VisionRecipe, data: Path, seed: int) -> Any:
    """The same backbone trained on labels of the stream's pictures."""
    known = "data.evaluation.train.0.path=supervised.parquet"
    sets = read(loaded(name, data, known, "arm=plain"))
    task = sets.tasks[PROBES[name][0]]
    pixels, targets = normalised(sets.probed), task.targets(sets.probed)
    torch.manual_seed(seed)
    model = new_model(prepared_config(recipe), dtype=torch.float32, attention="sdpa").train()
    encoder = LastBlocks(Backbone(model), recipe.evaluate.blocks)
    generator = torch.Generator().manual_seed(seed)
    head = task.head(encoder.width, sets.probed, generator, 0.1)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.04)
    steps = SUPERVISED["steps"]
    for step in range(steps):
        rate = min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = SUPERVISED["learning_rate"] * rate
        chosen = torch.randint(len(pixels), (SUPERVISED["batch_size"],), generator=generator)
        images = pixels[chosen].flip(-1) if step % 2 else pixels[chosen]
        outputs = head(encoder.features(images), targets.shape[1:][-2:] or (1, 1))
        loss = mean_loss(task, outputs, targets[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model.eval()


def apart(one: Score, other: Score) -> float:
    """How far the second score is better, in standard errors of the difference."""
    differences = numpy.subtract(other.items, one.items)
    differences = differences if one.higher_is_better else -differences
    return float(differences.mean() / differences.std(ddof=1) * math.sqrt(len(differences)))


def main() -> None:
    """Measures, decides, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=PROBES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name, data = options.recipe, options.data
    metric, unit = f"dev/{PROBES[name][1]}", PROBES[name][2]
    torch.set_num_threads(1)
    recipe = loaded(name, data, "arm=plain")
    materials = Vision().load(recipe)

    def probed(model: Any) -> Score:
        encoder = LastBlocks(Backbone(model), recipe.evaluate.blocks)
        return evaluate(recipe, materials.sets, encoder)[metric]

    def random_weights(seed: int) -> Score:
        torch.manual_seed(seed)
        model = new_model(prepared_config(recipe), dtype=torch.float32, attention="sdpa")
        return probed(model.eval())

    def continued(arm: str, seed: int) -> Score:
        each = loaded(name, data, f"arm={arm}", f"seed={seed}")
        return train(Run(each, Vision().build(each, materials), step0={})).final[metric]

    start = picture_learner(Vision().build(recipe, materials)).backbone.model
    result = {"prepared learner": [probed(start)]}
    ways = {
        "random weights": random_weights,
        "plain": lambda seed: continued("plain", seed),
        "direct": lambda seed: continued("direct", seed),
        "supervised": lambda seed: probed(supervised(name, recipe, data, seed)),
    }
    for kind, way in ways.items():
        result[kind] = [way(seed) for seed in range(options.seeds)]
        print(kind, [round(100 * score.value, 2) for score in result[kind]], flush=True)
    gaps = {
        f"{one} < {other}": [apart(*pair) for pair in zip(result[one], result[other], strict=True)]
        for one, other in pairwise(ORDER)
    }
    gates = {name: min(errors) >= 3 for name, errors in gaps.items()}
    write_json(
        options.out or Path(f"results/vision-{name}-gates.json"),
        {
            "recipe": f"recipes/vision/{name}.yaml",
            "metric": metric,
            "steps": recipe.budget.steps,
            unit: {
                kind: [round(100 * score.value, 2) for score in scores]
                for kind, scores in result.items()
            },
            "standard_errors_apart": {
                name: [round(errors, 2) for errors in each] for name, each in gaps.items()
            },
            "supervised": SUPERVISED,
            "gates": gates,
            "environment": {k: v for k, v in environment().items() if k != "command"},
            "command": "python benchmarks/picture_gates.py "
            f"{name} --data DIR --seeds {options.seeds}",
        },
    )
    for gate, holds in gates.items():
        print("holds" if holds else "FAILS", gate)


if __name__ == "__main__":
    main()
