"""How far the value of one steered step reaches, surface by surface: predicted, realised at once,
after heads are refitted, and some plain steps later.

    python benchmarks/vision_horizon.py [--draws 4] [--out results/vision-horizon.json]

On the recipe `demo-vision`, patches and further masks with an I-JEPA learner that is made on first
use. Each arm trains for some steps, so that what learns has learned; then
one batch is taken once under its task and once plainly, and plain steps follow on the same
batches, the teacher moving as ever. Gains are the loss of 64 held-out pictures of the plain path
less that of the steered one: under heads that stay, and under heads refitted to the features. The
predicted gain is `g . (theta_plain - theta_steered)`, g the gradient of the held-out loss under
heads that stay. About 15 minutes of one idle core.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from vision_parts import class_count, picture_learner

from vpretrain.config import recipe as recipes
from vpretrain.method.accumulation import MicroBatches, next_batches
from vpretrain.method.roles import detached
from vpretrain.method.step import SteeredStep
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.folder import environment
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.parts import Parts
from vpretrain.system.files import write_json
from vpretrain.vision import Vision
from vpretrain.vision.evaluation.probes import ProbeSettings, segmentation_probe
from vpretrain.vision.feedback.features import LastBlocks, freeze
from vpretrain.vision.modality import HELD_OUT_PICTURES, Materials

SURFACES = {
    "masks": "ascent",
    "targets": "closed_form",
    "weights of views": "view_weights",
    "crops": "chosen_crops",
    "direct": "direct",
}
OF_IJEPA = {
    "weights of patches, I-JEPA": "patch_weights",
    "masks, I-JEPA": "ascent",
    "direct, I-JEPA": "direct",
}
IJEPA = (
    "learner.kind=ijepa",
    "learner.predictor={width: 32, depth: 2, heads: 2}",
    "learner.model=null",
    "learner.prepare.seed=0",
)
BEFORE, BETWEEN, HORIZONS = 24, 4, (1, 10, 50)
REFITTED = ProbeSettings(steps=150, batch_size=32, train_size=(8, 8))


class Walk:
    """A learner that is taken along two paths from one moment."""

    def __init__(self, recipe: Any, materials: Materials) -> None:
        seed_run(recipe)
        self.recipe, self.materials = recipe, materials
        self.parts: Parts = Vision().build(recipe, materials)
        self.step: SteeredStep[Any, Any, Any] = new_step(recipe, self.parts)
        self.learner = getattr(self.parts.learner, "learner", self.parts.learner)
        self.rate = recipe.learner.learning_rate
        for _ in range(recipe.value.settle_steps):
            self.step(next_batches(self.parts.stream, self.parts.designer.draws), 0.0)
        self.step.count = 0
        self.steered(BEFORE)

    def steered(self, count: int) -> None:
        """The arm's own steps."""
        for _ in range(count):
            self.step(next_batches(self.parts.stream, self.parts.designer.draws), self.rate)

    def state(self) -> Any:
        """All that moves with the learner."""
        return copy.deepcopy(
            (
                self.learner.model.state_dict(),
                self.step.optimizer.state_dict(),
                self.learner.state_dict(),
            )
        )

    def restore(self, state: Any) -> None:
        """Back to :meth:`state`."""
        model, optimizer, beside = copy.deepcopy(state)
        self.learner.model.load_state_dict(model)
        self.step.optimizer.load_state_dict(optimizer)
        self.learner.load_state_dict(beside)

    def take(self, batch: Any, *, steered: bool) -> None:
        """One AdamW step, and the teacher's."""
        meta, learner = self.step.meta, self.learner
        if steered and meta.designer.selector is not None:
            chosen = meta.designer.selector.select(
                [batch], meta.value_estimator, meta_step=False, used=True
            )
            [batch] = chosen.batches
        if steered and self.parts.learner is not learner:
            learner = self.parts.learner
        [part] = MicroBatches((batch,)).weighted()
        context = learner.forward(part.batch)
        task = meta.designer.baseline_task(context)
        if steered:
            value_of = meta.value_estimator.on_part()
            task = detached(meta.designer.make_task(context, value_of))
        learner.loss(context, task).backward()
        torch.nn.utils.clip_grad_norm_(self.step.parameters, self.step.clip_norm)
        for group in self.step.optimizer.param_groups:
            group["lr"] = self.rate
        self.step.optimizer.step()
        self.step.optimizer.zero_grad(set_to_none=True)
        learner.after_step(0.0)

    def fixed(self) -> float:
        """Loss of the held-out pictures under heads that stay."""
        with torch.no_grad():
            return sum(float(piece) for piece in self.parts.held_out_loss())

    def refitted(self) -> float:
        """The same under heads that are trained on these features."""
        sets = self.materials.sets
        encoder = LastBlocks(picture_learner(self.parts).backbone, self.recipe.evaluate.blocks)
        probed = [
            freeze(encoder, part) for part in (sets.probed, sets.evaluation[:HELD_OUT_PICTURES])
        ]
        classes = class_count(sets, "segmentation")
        result = segmentation_probe(*probed, classes=classes, settings=REFITTED)
        return result.scores["cross_entropy"].value

    def followed(self, batches: list[Any], *, steered: bool) -> dict[str, Any]:
        """One step of either kind and plain ones after it."""
        result: dict[str, Any] = {"fixed": [], "refitted": []}
        for at, batch in enumerate(batches, 1):
            self.take(batch, steered=steered and at == 1)
            if at == 1:
                result["after"] = [p.detach().clone() for p in self.step.parameters]
            if at in HORIZONS:
                result["fixed"].append(self.fixed())
                result["refitted"].append(self.refitted())
        return result

    def gradient(self) -> list[torch.Tensor]:
        """Of :meth:`fixed`, over all parameters."""
        total = [torch.zeros_like(p) for p in self.step.parameters]
        for piece in self.parts.held_out_loss():
            pieces = torch.autograd.grad(piece, self.step.parameters, allow_unused=True)
            for held, one in zip(total, pieces, strict=True):
                if one is not None:
                    held += one
        return total

    def draw(self) -> dict[str, list[float]]:
        """Gains of one steered step."""
        self.steered(BETWEEN)
        meta = self.step.meta
        if meta.designer.uses_feedback:
            gradients = meta.feedback.gradients(self.learner)
            meta.value_estimator.update(gradients, meta.preconditioner(), self.rate)
        batches = [next(self.parts.stream) for _ in range(max(HORIZONS))]
        here, gradient = self.state(), self.gradient()
        plain = self.followed(batches, steered=False)
        self.restore(here)
        steered = self.followed(batches, steered=True)
        self.restore(here)
        moved = zip(gradient, plain["after"], steered["after"], strict=True)
        predicted = sum(float((g * (a - b)).sum()) for g, a, b in moved)
        gains = {
            kind: [a - b for a, b in zip(plain[kind], steered[kind], strict=True)]
            for kind in ("fixed", "refitted")
        }
        return {"predicted": [predicted], **gains}


def summary(draws: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Means and standard errors over draws."""
    result: dict[str, Any] = {}
    for kind in draws[0]:
        columns = list(zip(*(each[kind] for each in draws), strict=True))
        result[kind] = [round(statistics.fmean(column), 6) for column in columns]
        result[f"{kind}_stderr"] = [
            round(statistics.stdev(column) / len(column) ** 0.5, 6) for column in columns
        ]
    return result


def loaded(arm: str, learner: tuple[str, ...]) -> Any:
    """The recipe of an arm."""
    words = [f"arm={arm}", "evaluate.split=dev", "learner.warmup_fraction=0.0", *learner]
    return recipes.load("demo-vision", words, schemas=SCHEMAS)


def main() -> None:
    """Draws, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("results/vision-horizon.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    rows = {}
    for surfaces, learner in ((SURFACES, ()), (OF_IJEPA, IJEPA)):
        materials = Vision().load(loaded("plain", learner))
        for surface, arm in surfaces.items():
            walk = Walk(loaded(arm, learner), materials)
            rows[surface] = summary([walk.draw() for _ in range(options.draws)])
            print(surface, rows[surface], flush=True)
    write_json(
        options.out,
        {
            "recipe": "demo-vision",
            "draws": options.draws,
            "steps_before": BEFORE,
            "horizons": HORIZONS,
            "rows": rows,
            "command": "python benchmarks/vision_horizon.py",
            "environment": {k: v for k, v in environment().items() if k != "command"},
        },
    )


if __name__ == "__main__":
    main()
