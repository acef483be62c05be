"""The one-step probe: does the value of a step predict its effect on held-out feedback?

The learner stays at one point. Every draw takes a fresh unlabeled batch and its baseline task
(one-hot targets, unmodified views), predicts from ``g_pre`` how far a step lowers the held-out
feedback loss, takes the step, measures the loss, and restores everything bit for bit. ``g_down`` is
the gradient of that same held-out loss or, in ``*_fresh_feedback``, of the next feedback batches,
as in a run.

* against SGD on S, in nats: ``sgd_aligned``, ``eta <g_down, g_pre>_S`` (eq. 8);
  ``sgd_fresh_feedback``, the same; ``sgd_lower_bound``, ``eta V - L eta^2 |g_pre|_S^2 / 2``
  (Prop. 2.1)
* against SGD on all parameters, in nats: ``sgd_full``, ``eta <g_down, g_pre>``
* against AdamW on all parameters, proportional to the drop: ``adamw_plain``, ``<g_down, g_pre>_S``;
  ``adamw_preconditioned``, ``<P g_down, g_pre>_S`` (eq. 35); ``adamw_preconditioned_full``, the
  same over all parameters; ``adamw_fresh_feedback``, as ``adamw_preconditioned``
* against AdamW in nats: ``adamw_update``, ``<g_down, theta - theta+>``, of the update itself

AdamW's update rule shows which of them should come closest. With moments m, v from before the step
and c the factor that clips the gradient, the step t + 1 is

    theta - theta+ = lr [ b1 m + (1 - b1) c g ] / (1 - b1^(t+1))
        / ( sqrt( (b2 v + (1 - b2) c^2 g^2) / (1 - b2^(t+1)) ) + eps )

(and ``lr wd theta``, a constant). If the denominator used v alone, the drop would be ``a <P g_down,
g> + b``. The momentum's part b is the same in every draw, so subtracting it does not change
Pearson's r, and ``adamw_preconditioned_full`` is the closest prediction that is linear in
``g_pre``, hence the closest that a designer can ascend. It neglects the fresh gradient in the
denominator (of weight ``(1 - b2) / (1 - b2^(t+1))``: 1/17 after 16 settling steps, less later) and
the clipping, and P has a floor under ``sqrt(v_hat)``. ``adamw_update`` neglects none of these and
is an upper limit for any value: its distance from r = 1 is due to the curvature of the held-out
loss. The constant b is measured too, by a step without a gradient (``adamw_momentum_drop``).

In a bfloat16 learner a single step is mostly rounding; probe it with ``learner.dtype=float32``. The
paper's own probe, along a run, is :mod:`vpretrain.studies.probe_along`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.config.recipe import Recipe
from vpretrain.method import vectors
from vpretrain.method.accumulation import MicroBatches, next_batches
from vpretrain.method.roles import Gradient
from vpretrain.method.value import Alignment, adam_preconditioner
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import Parts
from vpretrain.studies.correlation import pearson, scatter, slope
from vpretrain.studies.one_step import STEP_FRACTION, OneStep, loss_of
from vpretrain.system.files import write_json

SETTLE_STEPS = 16
"""Minimum number of steps at learning rate 0: P is read from AdamW's moments, which they fill."""

REALISED = {
    "sgd_aligned": "sgd_aligned",
    "sgd_full": "sgd_full",
    "sgd_lower_bound": "sgd_aligned",
    "sgd_fresh_feedback": "sgd_aligned",
    "adamw_plain": "adamw",
    "adamw_preconditioned": "adamw",
    "adamw_preconditioned_full": "adamw",
    "adamw_fresh_feedback": "adamw",
    "adamw_update": "adamw",
}
"""The step whose realised drop each prediction is compared with."""
IN_NATS = ("sgd_aligned", "sgd_full", "sgd_lower_bound", "sgd_fresh_feedback", "adamw_update")
"""Predictions of the drop itself; the others are proportional to it, up to a constant."""
PANELS = {
    "sgd_aligned": "SGD on S",
    "sgd_full": "SGD on all parameters",
    "sgd_fresh_feedback": "SGD on S, fresh feedback",
    "adamw_plain": "AdamW, plain value on S",
    "adamw_preconditioned": "AdamW, optimizer-aware on S",
    "adamw_preconditioned_full": "AdamW, optimizer-aware on all",
}


def probe(
    recipe: Recipe,
    *,
    draws: int,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Compares the predicted with the realised one-step drop of the held-out feedback loss.

    Writes ``probe.json`` (the return value), ``points.json`` (every draw) and ``scatter.png``,
    ``scatter.svg`` to ``out``.

    Args:
        recipe: its arm is ignored.
        draws: number of fresh batches, at least 4.
        out: created if missing.
        progress: called with the number of draws done and their total.

    Returns:
        ``{draws, pearson: {prediction: r}, ci95: {prediction: [lo, hi]}, slope: {prediction in
        nats: realised per predicted}, sgd_rate, sgd_step_share, adamw_learning_rate,
        adamw_step_share, adamw_momentum_drop, lower_bound: {smoothness, curvature, share_holding},
        ...}``; r is None if a series is constant. ``curvature`` is the mean along the SGD steps,
        which L (``smoothness``) must not be below.

    Raises:
        UserError: the feedback is matched to sources of the stream (eq. 44-46).
        Fault: a loss or gradient is not finite.
    """
    started = time.perf_counter()
    modality = MODALITIES[recipe.modality]()
    recipe = recipe.model_copy(update={"arm": next(iter(modality.arms))})
    seed_run(recipe)
    bench = Bench(recipe, modality.build(recipe, modality.load(recipe)))
    points = []
    for index in range(draws):
        points.append(bench.draw(index))
        progress(index + 1, draws)
    result = _result(recipe, bench, points)
    result |= {"seconds": round(time.perf_counter() - started, 1), "environment": environment()}
    _write(out, result, points, bench.momentum_drop)
    return result


def _result(recipe: Recipe, bench: Bench, points: Sequence[Point]) -> dict[str, Any]:
    pairs = {
        name: ([p.predicted[name] for p in points], [p.realised[step] for p in points])
        for name, step in REALISED.items()
    }
    correlations = {name: pearson(*pair) for name, pair in pairs.items()}
    return {
        "recipe": recipe.description,
        "modality": recipe.modality,
        "seed": recipe.seed,
        "draws": len(points),
        "pearson": {name: r for name, (r, _) in correlations.items()},
        "ci95": {name: interval for name, (_, interval) in correlations.items()},
        "slope": {name: slope(*pairs[name]) for name in IN_NATS},
        "lower_bound": _lower_bound(points, bench.smoothness),
        "sgd_rate": bench.rate,
        "sgd_step_share": STEP_FRACTION,
        "adamw_learning_rate": recipe.learner.learning_rate,
        "adamw_step_share": sum(point.adamw_step_share for point in points) / len(points),
        "adamw_momentum_drop": bench.momentum_drop,
        "settle_steps": bench.settle_steps,
        "held_out_loss": bench.loss,
        "dtype": str(next(iter(bench.parameters.values())).dtype).removeprefix("torch."),
    }


def _lower_bound(points: Sequence[Point], smoothness: float) -> dict[str, float]:
    lost = [  # the loss to curvature, and the loss that Prop. 2.1 allows
        (
            point.predicted["sgd_aligned"] - point.realised["sgd_aligned"],
            point.predicted["sgd_aligned"] - point.predicted["sgd_lower_bound"],
        )
        for point in points
    ]
    ratio = sum(actual for actual, _ in lost) / (sum(allowed for _, allowed in lost) or 1.0)
    return {
        "smoothness": smoothness,
        "curvature": smoothness * ratio,
        "share_holding": sum(actual <= allowed for actual, allowed in lost) / len(lost),
    }


def _write(
    out: Path, result: dict[str, Any], points: Sequence[Point], momentum_drop: float
) -> None:
    predicted = {name: [point.predicted[name] for point in points] for name in REALISED}
    realised = {
        name: [point.realised[name] for point in points]
        for name in dict.fromkeys(REALISED.values())
    }
    out.mkdir(parents=True, exist_ok=True)
    digests = [point.batch for point in points]
    write_json(
        out / "points.json", {"predicted": predicted, "realised": realised, "batch": digests}
    )
    write_json(out / "probe.json", result)
    scatter(
        {title: (predicted[name], realised[REALISED[name]]) for name, title in PANELS.items()},
        [title for name, title in PANELS.items() if name in IN_NATS],
        {t: momentum_drop for name, t in PANELS.items() if REALISED[name] == "adamw"},
        out,
    )


@dataclass(frozen=True)
class Point:
    """One draw.

    Args:
        predicted: value of each prediction, by name.
        realised: drop of the held-out loss in nats, by step.
        adamw_step_share: norm of AdamW's step on S over the norm of S.
        batch: digest of the batch.
    """

    predicted: dict[str, float]
    realised: dict[str, float]
    adamw_step_share: float
    batch: str


class Bench(OneStep):
    """A learner after its settling steps, with everything that is constant across draws.

    Args:
        recipe: of an arm that uses no feedback.
        parts: freshly built from it; the stream advances, the learner does not.
    """

    def __init__(self, recipe: Recipe, parts: Parts) -> None:
        step = new_step(recipe, parts)
        self.settle_steps = max(SETTLE_STEPS, recipe.value.settle_steps)
        for _ in range(self.settle_steps):
            step(next_batches(parts.stream, 1), 0.0)
        super().__init__(recipe, parts, step)
        self.loss = loss_of(parts.held_out_loss())
        self.down = self.gradient(parts.held_out_loss())
        self.down_on_aligned = self.on_aligned(self.down)
        floor = step.meta.preconditioner_floor
        self.preconditioner = self._preconditioner(self.aligned, floor)
        self.preconditioned = product(self.preconditioner, self.down_on_aligned)
        self.preconditioned_full = product(self._preconditioner(self.parameters, floor), self.down)
        self.smoothness = self._smoothness(self.pilots())
        with self.unchanged():
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
            for group in step.optimizer.param_groups:
                group["lr"] = recipe.learner.learning_rate
            step.optimizer.step()
            self.momentum_drop = self._drop()

    def draw(self, index: int) -> Point:
        """Returns predictions and realised drops on the next batch; ``index`` seeds dropout."""
        with self.unchanged():
            batch, pre = self.next(index)
            aligned_pre = self.on_aligned(pre)
            predicted = self._predicted(pre, aligned_pre)
            realised = {}
            for name, gradient in (("sgd_aligned", aligned_pre), ("sgd_full", pre)):
                with self.unchanged():
                    self.descend(gradient)
                    realised[name] = self._drop()
            with self.unchanged():
                self.seed(index)  # the same dropout as in g_pre
                self.step(MicroBatches((batch,)), self.recipe.learner.learning_rate)
                realised["adamw"] = self._drop()
                before = self.unchanged.saved
                update = {name: before[name] - p.detach() for name, p in self.parameters.items()}
            predicted["adamw_update"] = vectors.inner(self.down, update)
            fraction = float(vectors.norm(self.on_aligned(update))) / self.size
            figures = {name: float(value) for name, value in predicted.items()}
            return Point(figures, realised, fraction, batch.digest())

    def _predicted(self, pre: Gradient, aligned_pre: Gradient) -> dict[str, Any]:
        downstream = vectors.mean(self.parts.feedback.gradients(self.learner))
        fresh = {name: piece for name, piece in downstream.items() if name in aligned_pre}
        bound = Alignment("lower_bound", self.smoothness)(
            self.down_on_aligned, aligned_pre, self.rate
        ).value
        plain = vectors.inner(self.down_on_aligned, aligned_pre)
        return {
            "sgd_aligned": self.rate * plain,
            "sgd_full": self.rate * vectors.inner(self.down, pre),
            "sgd_lower_bound": self.rate * bound,
            "sgd_fresh_feedback": self.rate * vectors.inner(fresh, aligned_pre),
            "adamw_plain": plain,
            "adamw_preconditioned": vectors.inner(self.preconditioned, aligned_pre),
            "adamw_preconditioned_full": vectors.inner(self.preconditioned_full, pre),
            "adamw_fresh_feedback": vectors.inner(product(self.preconditioner, fresh), aligned_pre),
        }

    def _smoothness(self, gradients: Sequence[Gradient]) -> float:
        """Returns L, an upper bound on the curvature along the pilot steps.

        It is the largest ``|g_down(theta+) - g_down(theta)| / |theta+ - theta|`` on S.

        This quotient bounds the curvature along the step from above, which is all that Prop. 2.1
        needs of L.
        """
        quotients = []
        for gradient in gradients:
            with self.unchanged():
                self.descend(gradient)
                moved = self.on_aligned(self.gradient(self.parts.held_out_loss()))
            change = vectors.norm(vectors.combine((1.0, moved), (-1.0, self.down_on_aligned)))
            quotients.append(float(change / (self.rate * vectors.norm(gradient))))
        return max(quotients)

    def _drop(self) -> float:
        """Returns the decrease of the held-out loss, in nats."""
        return self.loss - loss_of(self.parts.held_out_loss())

    def _preconditioner(self, parameters: dict[str, nn.Parameter], floor: float) -> Gradient:
        factors = adam_preconditioner(self.step.optimizer, parameters, floor)
        if factors is None:  # every gradient of the settling steps was zero
            return {
                name: torch.ones_like(vectors.wide(p.detach())) for name, p in parameters.items()
            }
        return factors


def product(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Gradient:
    """Returns the elementwise product over the names of ``b``."""
    return {name: a[name] * piece for name, piece in b.items()}
