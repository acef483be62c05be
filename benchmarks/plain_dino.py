"""Plain self-supervised learning in this loop against a straightforward DINO loop written with the
same libraries.

    python benchmarks/plain_dino.py [--rounds 7] [--steps 4] [--out results/vision-plain.json]

The other loop below is what one writes down for oneself: kornia's augmentations, the `transformers`
backbone called as it is, a projection head, a copy of the student as the teacher, DINO's double
loop over pairs of views, AdamW with clipping. Same shapes, pictures, batch and optimizer, one
thread; rounds alternate (ours, theirs, ours, ...) and the median of the rounds' processor time a
step is compared, which a busy machine disturbs less than the clock's. About 2 minutes of one core.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kornia.augmentation as augment
import torch
from torch import Tensor, nn
from torch.nn import functional
from vision_parts import prepared_config, vision_recipe

from vpretrain.method.accumulation import next_batches
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.folder import environment
from vpretrain.system.files import write_json
from vpretrain.vision import Vision
from vpretrain.vision.data.crops import CropSettings
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.loading import new_model
from vpretrain.vision.modality import Materials
from vpretrain.vision.recipe import VisionRecipe

CASES = {
    "scenes": ("demo-vision", []),
    "ViT-S, 112 pixels": (
        "bench-vit",
        ["data.feedback.head.warmup_steps=1", "learner.head_warmup_steps=1"],
    ),
}
SMALL_DATA = ["data.stream=[{name: scenes, pictures: {kind: scenes, split: stream, count: 256}}]"]


class Network(nn.Module):
    """A backbone and a projection head: images to scores of prototypes."""

    def __init__(self, recipe: VisionRecipe, config: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = new_model(config, dtype=torch.float32, attention="sdpa")
        self.has_class_token = "ijepa" not in config["model_type"]
        head, width = recipe.learner.head, self.backbone.config.hidden_size
        layers: list[nn.Module] = []
        for size in head.hidden:
            layers += [nn.Linear(width, size), nn.GELU()]
            width = size
        self.mlp = nn.Sequential(*layers, nn.Linear(width, head.bottleneck))
        self.last = nn.utils.parametrizations.weight_norm(
            nn.Linear(head.bottleneck, head.prototypes, bias=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, P]``."""
        extra = {} if self.has_class_token else {"interpolate_pos_encoding": True}
        tokens = self.backbone(images, **extra).last_hidden_state
        pooled = tokens[:, 0] if self.has_class_token else tokens.mean(1)
        return self.last(functional.normalize(self.mlp(pooled), dim=-1))


def augmentation(
    crops: CropSettings, size: int, scale: tuple[float, float], blur: float, solarise: float
) -> nn.Module:
    """One kind of view."""
    steps: list[nn.Module] = [
        augment.RandomResizedCrop((size, size), scale=scale),
        augment.RandomHorizontalFlip(p=crops.flip),
        augment.ColorJitter(
            crops.brightness, crops.contrast, crops.saturation, crops.hue, p=crops.jitter
        ),
    ]
    if crops.grayscale:
        steps.append(augment.RandomGrayscale(p=crops.grayscale))
    if blur:
        reach = min(
            int(3 * crops.blur_sigma[1] + 0.5), (size - 1) // 2
        )  # three standard deviations, as ours
        steps.append(
            augment.RandomGaussianBlur((2 * reach + 1, 2 * reach + 1), crops.blur_sigma, p=blur)
        )
    if solarise:
        steps.append(augment.RandomSolarize(0.5, 0.0, p=solarise))
    return nn.Sequential(
        *steps, augment.Normalize(torch.tensor(crops.mean), torch.tensor(crops.std))
    )


def straightforward(recipe: VisionRecipe, pictures: Iterator[ImageBatch]) -> Callable[[], None]:
    """A step of the loop as one would write it; ``pictures`` gives batches as ours has them."""
    section, crops = recipe.learner, recipe.learner.crops
    student = Network(recipe, section.config or prepared_config(recipe)).train()
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    views = [
        augmentation(crops, crops.global_size, crops.global_scale, crops.blur[0], 0.0),
        *(
            augmentation(
                crops, crops.global_size, crops.global_scale, crops.blur[1], crops.solarise
            )
            for _ in range(crops.global_count - 1)
        ),
        *(
            augmentation(crops, crops.local_size, crops.local_scale, crops.blur[2], 0.0)
            for _ in range(crops.local_count)
        ),
    ]
    optimizer = torch.optim.AdamW(
        student.parameters(),
        lr=section.learning_rate,
        weight_decay=section.weight_decay,
        fused=True,
    )

    def step() -> None:
        images = next(pictures).pixels.float() / 255
        with torch.no_grad():
            cut = [view(images) for view in views]
            shown = torch.cat(cut[: crops.global_count])
            targets = sinkhorn(teacher(shown) / section.teacher_temperature).chunk(
                crops.global_count
            )
        small = [student(torch.cat(cut[crops.global_count :]))] if crops.local_count else []
        scores = torch.cat([student(shown), *small]).chunk(len(cut))
        loss, pairs = torch.zeros(()), 0
        for g, target in enumerate(targets):
            for v, score in enumerate(scores):
                if g != v:
                    loss = (
                        loss
                        - (target * functional.log_softmax(score / section.student_temperature, 1))
                        .sum(1)
                        .mean()
                    )
                    pairs += 1
        optimizer.zero_grad()
        (loss / pairs).backward()
        nn.utils.clip_grad_norm_(student.parameters(), section.clip_norm)
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - section.teacher_momentum)

    return step


def sinkhorn(scores: Tensor) -> Tensor:
    """Targets balanced over prototypes."""
    q = (scores - scores.max()).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def ours(recipe: VisionRecipe, materials: Materials) -> Callable[[], None]:
    """A step of this loop's plain arm, as `vpretrain train` takes it."""
    seed_run(recipe)
    parts = Vision().build(recipe, materials)
    step = new_step(recipe, parts)

    def take() -> None:
        step(next_batches(parts.stream, 1), recipe.learner.learning_rate, 0.1)

    return take


def measured(name: str, overrides: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds a step of both, medians over alternating rounds."""
    recipe = vision_recipe(name, ["arm=plain", *SMALL_DATA, *overrides])
    torch.set_num_threads(1)
    materials = Vision().load(recipe)
    stream = Vision().build(recipe, materials).stream
    ways = {
        "vpretrain": ours(recipe, materials),
        "straightforward": straightforward(recipe, stream),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):  # the first one fills caches and allocators
        for way, step in ways.items():
            started = time.process_time()
            for _ in range(steps):
                step()
            if turn:
                taken[way].append((time.process_time() - started) / steps)
    result = {way: round(1e3 * statistics.median(each), 1) for way, each in taken.items()}
    ratios = [a / b for a, b in zip(taken["vpretrain"], taken["straightforward"], strict=True)]
    return {
        "milliseconds_a_step": result,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in ratios],
    }


def main() -> None:
    """Prints one line a case, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("results/vision-plain.json"))
    options = parser.parse_args()
    cases = {}
    for case, (name, overrides) in CASES.items():
        cases[case] = {"recipe": name, **measured(name, overrides, options.rounds, options.steps)}
        print(case, cases[case]["milliseconds_a_step"], "ratio", cases[case]["ratio"], flush=True)
    command = f"python benchmarks/plain_dino.py --rounds {options.rounds} --steps {options.steps}"
    write_json(
        options.out,
        {"plain_dino": cases, "threads": 1, "command": command, "environment": environment()},
    )


if __name__ == "__main__":
    main()
