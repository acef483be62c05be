"""How far the value of one step reaches: the second-order loss along it, and what is left of it
some steps later.

    python benchmarks/horizon.py [recipe] [key=value ...] [--draws 8]

From a settled learner, one batch is taken once with one-hot targets and once with token weights at
each tilt, then plain steps follow on the same batches. Held-out feedback loss (eq. 38) of the plain
run less that of the steered one, at each horizon, is the realised gain; the first-order gain is
that of the two updates themselves, `g . (theta_plain - theta_steered)` with g the held-out
gradient. Their ratio at horizon 1 is the trust region's answer; the realised gain over that at
horizon 1 says how much of a step's value lasts. Writes `results/horizon.json`.
"""

from __future__ import annotations

import copy
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from vpretrain.config import recipe as recipes
from vpretrain.language.learner.targets import one_hot
from vpretrain.language.steering.rules import TokenWeights
from vpretrain.method.accumulation import next_batches
from vpretrain.method.step import SteeredStep
from vpretrain.run.build import new_step
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.parts import Parts
from vpretrain.system.files import write_json

TILTS = (0.4, 1.5, 5.0)
HORIZONS = (1, 2, 4, 8, 16, 32)


def held_out(parts: Parts) -> float:
    """The feedback loss on held-out rows."""
    with torch.no_grad():
        return float(sum(parts.held_out_loss()))


def held_out_gradient(parts: Parts) -> list[torch.Tensor]:
    """Its gradient over all parameters."""
    total = [torch.zeros_like(p) for p in parts.learner.model.parameters()]
    for piece in parts.held_out_loss():
        for held, grad in zip(
            total, torch.autograd.grad(piece, list(parts.learner.model.parameters())), strict=True
        ):
            held += grad
    return total


class Settled:
    """A learner and its optimizer at one moment, to come back to."""

    def __init__(self, step: SteeredStep[Any, Any, Any]) -> None:
        self.step = step
        self.state = copy.deepcopy((step.learner.model.state_dict(), step.optimizer.state_dict()))

    def restore(self) -> None:
        """Back to that moment."""
        model, optimizer = copy.deepcopy(self.state)
        self.step.learner.model.load_state_dict(model)
        self.step.optimizer.load_state_dict(optimizer)


def take(step: SteeredStep[Any, Any, Any], context: Any, task: Any, rate: float) -> None:
    """One AdamW step on a task, as the program takes it."""
    step.learner.loss(context, task).backward()
    torch.nn.utils.clip_grad_norm_(step.parameters, step.clip_norm)
    for group in step.optimizer.param_groups:
        group["lr"] = rate
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)


def followed(
    step: SteeredStep[Any, Any, Any], parts: Parts, batches: list[Any], tilt: float, rate: float
) -> tuple[list[float], list[torch.Tensor]]:
    """One step whose tokens are weighted by so much and plain ones after it: the held-out loss at
    every horizon, and the parameters after the first."""
    losses, after = [], []
    for at, batch in enumerate(batches, 1):
        context = step.learner.forward(batch)
        task = one_hot(context.labels)
        if at == 1 and tilt:
            rule = TokenWeights(tilt)
            values = step.meta.value_estimator.on_part()(context, task).gradient[0]
            task = rule.task(rule.probe(context), values / values.std(correction=0))
        take(step, context, task, rate)
        if at == 1:
            after = [p.detach().clone() for p in step.parameters]
        if at in HORIZONS:
            losses.append(held_out(parts))
    return losses, after


def drawn(step: SteeredStep[Any, Any, Any], parts: Parts, rate: float) -> dict[float, Any]:
    """Of one draw: what each tilt's step is predicted to gain, and what it gained at each
    horizon."""
    for _ in range(4):  # the draws are apart, and so are their feedback rows
        step(next_batches(parts.stream, 1), rate)
    step.meta.value_estimator.update(
        step.meta.feedback.gradients(step.learner), step.meta.preconditioner(), rate
    )
    batches = [next(parts.stream) for _ in range(max(HORIZONS))]
    here, gradient = Settled(step), held_out_gradient(parts)
    paths = {}
    for tilt in (0.0, *TILTS):
        here.restore()
        paths[tilt] = followed(step, parts, batches, tilt, rate)
    here.restore()
    plain_losses, plain_point = paths[0.0]
    gains = {}
    for tilt in TILTS:
        losses, point = paths[tilt]
        moved = zip(gradient, plain_point, point, strict=True)
        gains[tilt] = {
            "predicted": float(sum((g * (plain - steered)).sum() for g, plain, steered in moved)),
            "realised": [a - b for a, b in zip(plain_losses, losses, strict=True)],
        }
    return gains


def summary(tilt: float, gains: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over draws, and their standard errors."""
    realised = list(zip(*(each["realised"] for each in gains), strict=True))
    return {
        "tilt": tilt,
        "predicted": statistics.fmean(each["predicted"] for each in gains),
        "realised": [statistics.fmean(figures) for figures in realised],
        "stderr": [statistics.stdev(figures) / len(gains) ** 0.5 for figures in realised],
    }


def main() -> None:
    """Draws, and prints one line a tilt."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    draws = int(sys.argv[sys.argv.index("--draws") + 1]) if "--draws" in sys.argv else 8
    words = [word for word in words if not word.isdigit()]
    source = words[0] if words and "=" not in words[0] else "demo-language"
    overrides = [
        "arm=token_weights",
        "evaluate.split=dev",
        *(word for word in words if "=" in word),
    ]
    recipe = recipes.load(source, overrides, schemas=SCHEMAS)
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    modality = MODALITIES[recipe.modality]()
    parts = modality.build(recipe, modality.load(recipe))
    step, rate = new_step(recipe, parts), recipe.learner.learning_rate
    for _ in range(recipe.value.settle_steps):
        step(next_batches(parts.stream, 1), 0.0)
    gains = [drawn(step, parts, rate) for _ in range(draws)]
    table = [summary(tilt, [each[tilt] for each in gains]) for tilt in TILTS]
    for row in table:
        figures = zip(HORIZONS, row["realised"], row["stderr"], strict=True)
        print(
            f"tilt {row['tilt']}: first order {row['predicted']:.2e}, realised",
            *(f"{h}:{m:.2e}±{e:.0e}" for h, m, e in figures),
        )
    result = {
        "recipe": source,
        "overrides": overrides,
        "learning_rate": rate,
        "draws": draws,
        "horizons": HORIZONS,
        "rows": table,
        "environment": environment(),
    }
    write_json(Path(__file__).parent.parent / "results" / "horizon.json", result)


if __name__ == "__main__":
    main()
