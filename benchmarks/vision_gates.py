"""Whether the rendered scenes can tell one way of pretraining from another: the gates of the vision
test bed.

    python benchmarks/vision_gates.py [--seeds 3] [--out results/vision-gates.json]

Measured on the recipe `demo-vision`, mIoU of the probe on the test scenes: random weights, the
packaged learner, its plain continuation, the arm `direct` (which hears the labels themselves), the
same backbone trained on labels from end to end, and the probe's own noise. A gate is a sentence
about those figures that holds or does not. About 8 minutes of two idle cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from vision_parts import class_count, picture_learner, prepared_config, vision_recipe

from vpretrain.run.folder import environment
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.files import write_json
from vpretrain.vision import Vision
from vpretrain.vision.backbone import Backbone
from vpretrain.vision.data.images import Picture, normalised
from vpretrain.vision.data.scenes import Scenes
from vpretrain.vision.evaluation.probes import ProbeResult, segmentation_probe
from vpretrain.vision.feedback.features import LastBlocks, freeze
from vpretrain.vision.feedback.heads import Head
from vpretrain.vision.feedback.tasks import Segmentation, balanced, mean_loss
from vpretrain.vision.loading import new_model
from vpretrain.vision.modality import Materials
from vpretrain.vision.recipe import VisionRecipe

REFITS = (0, 1, 2, 3, 4)


class Supervised(TypedDict):
    """How the same backbone is trained on labels."""

    steps: int
    pictures: int
    batch_size: int
    learning_rate: float


SUPERVISED: Supervised = {
    "steps": 600,
    "pictures": 2000,
    "batch_size": 32,
    "learning_rate": 2e-3,
}


def loaded(*overrides: str) -> VisionRecipe:
    """The demo's recipe."""
    return vision_recipe("demo-vision", ["evaluate.probes=[segmentation]", *overrides])


def probed(
    recipe: VisionRecipe, model: Any, materials: Materials, *, refits: tuple[int, ...] = (0,)
) -> ProbeResult:
    """The probe on a model's frozen features, as the recipe asks for it."""
    encoder = LastBlocks(Backbone(model), recipe.evaluate.blocks)
    train, test = (
        freeze(encoder, pictures) for pictures in (materials.sets.probed, materials.sets.evaluation)
    )
    settings = recipe.evaluate.probe.model_copy(update={"refits": refits})
    return segmentation_probe(
        train,
        test,
        classes=class_count(materials.sets, "segmentation"),
        settings=settings,
        class_balanced=recipe.evaluate.class_balanced,
    )


def supervised(recipe: VisionRecipe, materials: Materials, seed: int = 0) -> float:
    """Score of the same backbone with a linear-BN head, both trained on labels: what the
    architecture can do.
    """
    scenes = Scenes("stream", SUPERVISED["pictures"], recipe.data.image_size, 1)
    pictures = [scenes[number] for number in range(len(scenes))]
    classes = class_count(materials.sets, "segmentation")
    task = Segmentation(classes, balanced(pictures, classes))
    torch.manual_seed(seed)
    model = new_model(prepared_config(recipe), dtype=torch.float32, attention="sdpa").train()
    encoder = LastBlocks(Backbone(model), recipe.evaluate.blocks)
    generator = torch.Generator().manual_seed(seed)
    head = Head(encoder.width, classes, generator)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.04)
    pixels, labels = normalised(pictures), task.targets(pictures)
    for step in range(SUPERVISED["steps"]):
        fraction = step / SUPERVISED["steps"]
        for group in optimizer.param_groups:
            group["lr"] = (
                SUPERVISED["learning_rate"]
                * min(1, (step + 1) / 50)
                * (1 + math.cos(math.pi * fraction))
                / 2
            )
        chosen = torch.randint(len(pictures), (SUPERVISED["batch_size"],), generator=generator)
        images, targets = pixels[chosen], labels[chosen]
        if step % 2:
            images, targets = images.flip(-1), targets.flip(-1)
        size = (targets.shape[1], targets.shape[2])
        loss = mean_loss(task, head(encoder.features(images), size), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return miou(model.eval(), head.eval(), encoder, materials.sets.evaluation, task)


@torch.no_grad()
def miou(
    model: Any, head: nn.Module, encoder: LastBlocks, pictures: list[Picture], task: Segmentation
) -> float:
    """Of the head's own predictions."""
    images, labels = normalised(pictures), task.targets(pictures)
    size = (labels.shape[1], labels.shape[2])
    predicted = torch.cat(
        [head(encoder.features(part), size).argmax(1) for part in images.split(32)]
    )

    def overlap(label: int) -> Tensor:
        mine, theirs = predicted == label, labels == label
        return (mine & theirs).sum() / (mine | theirs).sum().clamp_min(1)

    return float(torch.stack([overlap(label) for label in range(task.classes)]).mean())


def decided(
    result: dict[str, list[float]],
    mean: dict[str, float],
    paired: list[float],
    refit: float,
    bootstrap: float,
) -> dict[str, bool]:
    """Whether each gate holds; ``mean``, ``paired`` and errors in percent."""
    above = {name: figure - mean["random weights"] for name, figure in mean.items()}
    return {
        "pretraining lifts the probe above random weights, by five bootstrap errors or more": above[
            "packaged learner"
        ]
        > 5 * bootstrap,
        "plain continuation still improves, in every seed": min(result["plain"])
        > result["packaged learner"][0],
        "supervised training of the same backbone is at least twice as far above random "
        "weights": above["supervised"] > 2 * above["plain"],
        "direct is above plain in every seed, by five refit errors or more": min(paired)
        > 5 * refit,
    }


def main() -> None:
    """Measures, decides, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/vision-gates.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = loaded()
    materials = Vision().load(recipe)
    seconds: dict[str, float] = {}

    def random_weights(seed: int) -> float:
        torch.manual_seed(seed)
        model = new_model(prepared_config(recipe), dtype=torch.float32, attention="sdpa").eval()
        return probed(recipe, model, materials).scores["miou"].value

    def continued(arm: str, seed: int) -> float:
        started = time.perf_counter()
        each = loaded(f"arm={arm}", f"seed={seed}")
        result = (
            train(Run(each, Vision().build(each, materials), step0={})).final["test/miou"].value
        )
        seconds[arm] = round(time.perf_counter() - started, 1)
        print(arm, seed, round(100 * result, 2), seconds[arm], "s", flush=True)
        return result

    start = picture_learner(Vision().build(loaded("arm=plain"), materials)).backbone.model
    noise = probed(recipe, start, materials, refits=REFITS)
    result = {
        "random weights": [random_weights(seed) for seed in range(options.seeds)],
        "packaged learner": [noise.scores["miou"].value],
        "plain": [continued("plain", seed) for seed in range(options.seeds)],
        "direct": [continued("direct", seed) for seed in range(options.seeds)],
        "supervised": [supervised(recipe, materials)],
    }
    mean = {name: 100 * statistics.fmean(figures) for name, figures in result.items()}
    refit, bootstrap = 100 * noise.refit_std["miou"], 100 * noise.scores["miou"].stderr
    paired = [100 * (a - b) for a, b in zip(result["direct"], result["plain"], strict=True)]
    gates = decided(result, mean, paired, refit, bootstrap)
    write_json(
        options.out,
        {
            "recipe": "demo-vision",
            "steps": recipe.budget.steps,
            "miou_percent": {
                name: [round(100 * x, 2) for x in figures] for name, figures in result.items()
            },
            "direct_minus_plain": [round(x, 2) for x in paired],
            "noise": {"refit_std": round(refit, 3), "bootstrap_stderr": round(bootstrap, 3)},
            "supervised": SUPERVISED,
            "seconds_of_a_run": seconds,
            "gates": gates,
            "environment": environment(),
        },
    )
    for name, figure in mean.items():
        print(f"{name:>20}: {figure:.2f}")
    for gate, holds in gates.items():
        print("holds" if holds else "FAILS", gate)


if __name__ == "__main__":
    main()
