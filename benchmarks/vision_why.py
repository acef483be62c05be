"""Where the value of a steered step goes: the feedback loss after every step, under a head that
stays and one that is refitted.

    python benchmarks/vision_why.py [--steps 40] [--out results/vision-why.json]

On the recipe `demo-vision`, test scenes (64 pictures under fixed heads). Three suspects, one at a
time: the step size against the curvature (the first step at several learning rates), the moving
teacher (the same arm with a teacher that stands still), and the stale head (fixed against
refitted). About 4 minutes of one idle core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from vision_parts import class_count, picture_learner, vision_recipe

from vpretrain.method.accumulation import next_batches
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.folder import environment
from vpretrain.run.schedule import learning_rate
from vpretrain.system.files import write_json
from vpretrain.vision import Vision
from vpretrain.vision.evaluation.probes import ProbeSettings, segmentation_probe
from vpretrain.vision.feedback.features import LastBlocks, freeze
from vpretrain.vision.modality import HELD_OUT_PICTURES, Materials
from vpretrain.vision.recipe import VisionRecipe

STEERED = ("ascent", "closed_form", "view_weights")
REFITTED = ProbeSettings(steps=150, batch_size=32, train_size=(8, 8))
MULTIPLES = (0.25, 0.5, 1.0, 2.0)


def loaded(*overrides: str) -> VisionRecipe:
    """The demo's recipe, constant learning rate after one step."""
    description = [
        "value.guard_window=0",
        "learner.warmup_fraction=0.0",
        "learner.final_fraction=1.0",
        *overrides,
    ]
    return vision_recipe("demo-vision", description)


def trace(
    recipe: VisionRecipe, materials: Materials, steps: int, *, refit_every: int = 0
) -> dict[str, Any]:
    """Loss of the held-out pictures before the first step and after each: ``fixed`` heads, and
    ``refitted`` ones at times.
    """
    seed_run(recipe)
    parts = Vision().build(recipe, materials)
    step = new_step(recipe, parts)
    encoder = LastBlocks(picture_learner(parts).backbone, recipe.evaluate.blocks)
    classes = class_count(materials.sets, "segmentation")

    def fixed() -> float:
        with torch.no_grad():
            return sum(float(piece) for piece in parts.held_out_loss())

    def refitted() -> float:
        probed = [
            freeze(encoder, part)
            for part in (materials.sets.probed, materials.sets.evaluation[:HELD_OUT_PICTURES])
        ]
        result = segmentation_probe(*probed, classes=classes, settings=REFITTED)
        return result.scores["cross_entropy"].value

    for _ in range(recipe.value.settle_steps):
        step(next_batches(parts.stream, 1), 0.0)
    step.count = 0
    result: dict[str, Any] = {"fixed": [fixed()], "refitted": {}, "gain": []}
    for count in range(steps + 1):
        if refit_every and count % refit_every == 0:
            result["refitted"][count] = round(refitted(), 5)
        if count < steps:
            record = step(
                next_batches(parts.stream, 1), learning_rate(recipe.learner, 1.0), count / steps
            )
            result["fixed"].append(fixed())
            if "gain" in record:
                result["gain"].append(record["gain"])
    result["fixed"] = [round(loss, 5) for loss in result["fixed"]]
    return result


def first_step(arm: str, materials: Materials, multiple: float) -> float:
    """Change of the fixed-head loss by one step at a multiple of the recipe's learning rate."""
    recipe = loaded(f"arm={arm}")
    scaled = recipe.learner.model_copy(
        update={"learning_rate": multiple * recipe.learner.learning_rate}
    )
    fixed = trace(recipe.model_copy(update={"learner": scaled}), materials, 1)["fixed"]
    return fixed[1] - fixed[0]


KINDS = ("fixed", "refitted")


def reading(runs: dict[str, Any], scan: dict[str, Any], last: int) -> list[str]:
    """What the figures say, a line a question."""

    def over(arm: str, baseline: str, at: int) -> float:
        return runs[arm]["fixed"][at] - runs[baseline]["fixed"][at]

    steered = {
        arm: (over(arm, "plain", 1), over(arm, "plain", last)) for arm in (*STEERED, "direct")
    }
    refitted = {
        arm: runs[arm]["refitted"][last] - runs["plain"]["refitted"][last] for arm in steered
    }
    of_scan = {m: scan["closed_form"][m] - scan["plain"][m] for m in MULTIPLES}
    plain = {kind: runs["plain"][kind][last] - runs["plain"][kind][0] for kind in KINDS}
    return [
        f"fixed heads, arm minus plain, after 1 step and after {last}: "
        + "; ".join(f"{arm} {one:+.4f}, {all_:+.4f}" for arm, (one, all_) in steered.items()),
        f"refitted heads, arm minus plain, after {last}: "
        + "; ".join(f"{arm} {x:+.4f}" for arm, x in refitted.items()),
        "step size: closed_form minus plain after the first step at multiples of the learning "
        "rate: " + "; ".join(f"{m:g} {x:+.5f}" for m, x in of_scan.items()),
        f"teacher: closed_form minus plain after {last} is "
        f"{over('closed_form', 'plain', last):+.4f} with a teacher that follows"
        f" and {over('closed_form, teacher still', 'plain, teacher still', last):+.4f} with "
        "one that stands still",
        f"stale head: plain itself moves the fixed-head loss by {plain['fixed']:+.4f} and the "
        f"refitted one by {plain['refitted']:+.4f}",
    ]


def main() -> None:
    """Measures, and says what the figures say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("results/vision-why.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    materials = Vision().load(loaded())
    every = max(1, options.steps // 4)
    runs = {}
    for arm in ("plain", *STEERED, "direct"):
        runs[arm] = trace(loaded(f"arm={arm}"), materials, options.steps, refit_every=every)
        print(arm, runs[arm]["fixed"][0], runs[arm]["fixed"][-1], runs[arm]["refitted"], flush=True)
    still = "learner.teacher_momentum=1.0"
    for arm in ("plain", "closed_form"):
        runs[f"{arm}, teacher still"] = trace(
            loaded(f"arm={arm}", still), materials, options.steps, refit_every=every
        )
    scan = {
        arm: {m: round(first_step(arm, materials, m), 6) for m in MULTIPLES}
        for arm in ("plain", "closed_form")
    }
    said = reading(runs, scan, options.steps)
    write_json(
        options.out,
        {
            "steps": options.steps,
            "runs": runs,
            "first_step": scan,
            "reading": said,
            "environment": environment(),
        },
    )
    print("\n".join(said))


if __name__ == "__main__":
    main()
