"""The one-step probe: does the value of a step predict what the step does to held-out feedback?

The learner stands still at one point. Every draw takes a fresh unlabeled batch and its plain task
(one-hot targets, plain views), predicts from ``g_pre`` how far a step lowers the held-out feedback
loss, takes the step, measures, and puts everything back bit for bit. ``g_down`` is that very loss's
gradient unless it says *heard*.

============================  ============================================
===================================  ===== prediction                    is
against the step                     unit ============================
============================================  ===================================  =====
``sgd_aligned``               eta <g_down, g_pre>_S (eq. 8)                 SGD on S
nats ``sgd_full``                  the same over all parameters                  SGD on all
parameters                nats ``sgd_lower_bound``           eta V - L eta^2 |g_pre|_S^2 / 2 (Prop.
2.1)   SGD on S                             nats ``sgd_heard``                 as ``sgd_aligned``,
g_down of fresh feedback  SGD on S                             nats ``adamw_plain``
<g_down, g_pre>_S                             AdamW, all parameters                value
``adamw_preconditioned``      <P g_down, g_pre>_S (eq. 35)                  AdamW, all parameters
value ``adamw_preconditioned_full`` <P g_down, g_pre> over all parameters         AdamW, all
parameters                value ``adamw_heard``               as ``_preconditioned``, fresh feedback
AdamW, all parameters                value ``adamw_update``              <g_down, theta - theta+>,
the update itself   AdamW, all parameters                nats ============================
============================================  ===================================  =====

What AdamW's step is made of says which of them should come closest. With moments m, v from before
the step and c the factor that clips the gradient, the step t + 1 is

    theta - theta+ = lr [ b1 m + (1 - b1) c g ] / (1 - b1^(t+1)) / ( sqrt( (b2 v + (1 - b2) c^2 g^2)
    / (1 - b2^(t+1)) ) + eps )

(and ``lr wd theta``, a constant). Were the denominator that of v alone, the drop would be
``a <P g_down, g> + b``: the momentum's part b is the same in every draw, so that subtracting it
leaves Pearson's r as it is, and ``adamw_preconditioned_full`` is the closest prediction that is
linear in ``g_pre``, hence the closest that a designer can climb. It leaves out the fresh gradient
in the denominator (of weight ``(1 - b2) / (1 - b2^(t+1))``: 1/17 after 16 steps of burn-in, less
later) and the clipping, and P has a floor under ``sqrt(v_hat)``. ``adamw_update`` leaves out none
of these and is what no value can beat: what it lacks to r = 1 is the curvature of the held-out
loss. The constant b is measured too, by a step without a gradient (``adamw_momentum_drop``).

In a bfloat16 learner a single step is mostly rounding; probe it with ``learner.dtype=float32``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from vpretrain.config.recipe import Recipe
from vpretrain.method import vectors
from vpretrain.method.accumulation import MicroBatches, next_batches
from vpretrain.method.roles import Gradient, detached
from vpretrain.method.snapshot import Snapshot
from vpretrain.method.value import Alignment, adam_preconditioner
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import Parts
from vpretrain.system.errors import Fault, user_error
from vpretrain.system.files import write_json

STEP_SHARE = 1e-3
"""Mean norm of the SGD step on S over the norm of S. On ``demo-language`` (60 draws) r of
``sgd_aligned`` is 0.99999, 0.9993, 0.994 and 0.93 at 1e-4, 1e-3, 3e-3 and 1e-2: the loss is still
linear here, and the drop far above rounding."""
PILOTS = 8
"""Batches before the draws that set the SGD rate and measure L."""
BURN_IN_STEPS = 16
"""The fewest steps at learning rate 0, whatever the recipe says: P is read from AdamW's moments."""

REALISED = {
    "sgd_aligned": "sgd_aligned",
    "sgd_full": "sgd_full",
    "sgd_lower_bound": "sgd_aligned",
    "sgd_heard": "sgd_aligned",
    "adamw_plain": "adamw",
    "adamw_preconditioned": "adamw",
    "adamw_preconditioned_full": "adamw",
    "adamw_heard": "adamw",
    "adamw_update": "adamw",
}
"""The step that each prediction is held against."""
IN_NATS = ("sgd_aligned", "sgd_full", "sgd_lower_bound", "sgd_heard", "adamw_update")
"""Predictions of the drop itself; the others are proportional to it, with a constant."""


def probe(
    recipe: Recipe,
    *,
    draws: int,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Predicted against realised one-step drop of the held-out feedback loss.

    Writes ``probe.json`` (what is returned), ``points.json`` (every draw) and ``scatter.png``,
    ``scatter.svg`` to ``out``.

    Args:
        recipe: its arm is ignored.
        draws: fresh batches, at least 4.
        out: created if missing.
        progress: is given draws done and draws in all.

    Returns:
        ``{draws, pearson: {prediction: r}, ci95: {prediction: [lo, hi]}, slope: {prediction in
        nats: realised per predicted}, sgd_rate, sgd_step_share, adamw_learning_rate,
            adamw_step_share, adamw_momentum_drop, lower_bound:
        {smoothness, curvature, share_holding},
        ...}``; None stands for r where a series is constant. ``curvature`` is the mean one along
        the SGD steps, which L (``smoothness``) is to be no less than.

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
    predicted = {name: [point.predicted[name] for point in points] for name in REALISED}
    realised = {
        name: [point.realised[name] for point in points]
        for name in dict.fromkeys(REALISED.values())
    }
    correlations = {
        name: pearson(predicted[name], realised[step]) for name, step in REALISED.items()
    }
    steps = zip(
        predicted["sgd_aligned"], predicted["sgd_lower_bound"], realised["sgd_aligned"], strict=True
    )
    lost = [
        (linear - drop, linear - bound) for linear, bound, drop in steps
    ]  # to curvature, and what Prop. 2.1 allows
    found = {
        "recipe": recipe.description,
        "modality": recipe.modality,
        "seed": recipe.seed,
        "draws": draws,
        "pearson": {name: r for name, (r, _) in correlations.items()},
        "ci95": {name: interval for name, (_, interval) in correlations.items()},
        "slope": {name: slope(predicted[name], realised[REALISED[name]]) for name in IN_NATS},
        "lower_bound": {
            "smoothness": bench.smoothness,
            "curvature": bench.smoothness
            * sum(a for a, _ in lost)
            / (sum(b for _, b in lost) or 1.0),
            "share_holding": sum(a <= b for a, b in lost) / draws,
        },
        "sgd_rate": bench.rate,
        "sgd_step_share": STEP_SHARE,
        "adamw_learning_rate": recipe.learner.learning_rate,
        "adamw_step_share": sum(point.adamw_step_share for point in points) / draws,
        "adamw_momentum_drop": bench.momentum_drop,
        "settle_steps": bench.settle_steps,
        "held_out_loss": bench.loss,
        "dtype": str(next(iter(bench.parameters.values())).dtype).removeprefix("torch."),
        "seconds": round(time.perf_counter() - started, 1),
        "environment": environment(),
    }
    out.mkdir(parents=True, exist_ok=True)
    digests = [point.batch for point in points]
    write_json(
        out / "points.json", {"predicted": predicted, "realised": realised, "batch": digests}
    )
    write_json(out / "probe.json", found)
    scatter(predicted, realised, correlations, bench.momentum_drop, out)
    return found


@dataclass(frozen=True)
class Point:
    """One draw.

    Args:
        predicted: by prediction.
        realised: drop of the held-out loss in nats, by step.
        adamw_step_share: norm of AdamW's step on S over the norm of S.
        batch: digest of the batch.
    """

    predicted: dict[str, float]
    realised: dict[str, float]
    adamw_step_share: float
    batch: str


class Bench:
    """A learner after its burn-in, with everything that does not change from draw to draw.

    Args:
        recipe: of an arm that hears no feedback.
        parts: freshly built from it; the stream goes on, the learner stays where it is.
    """

    def __init__(self, recipe: Recipe, parts: Parts) -> None:
        self.recipe, self.parts, self.learner = recipe, parts, parts.learner
        self.step = new_step(recipe, parts)
        self.settle_steps = max(BURN_IN_STEPS, recipe.value.settle_steps)
        for _ in range(self.settle_steps):
            self.step(next_batches(parts.stream, 1), 0.0)
        moving = (
            self.step.optimizer.state
        )  # a parameter that the loss does not reach has no moments and never moves
        self.parameters = {
            name: p for name, p in self.learner.model.named_parameters() if p in moving
        }
        aligned = {id(p) for p in self.learner.aligned.values()}
        self.aligned = {name: p for name, p in self.parameters.items() if id(p) in aligned}
        if not self.learner.aligned.keys() & self.aligned.keys():
            message = (
                "feedback that is matched to sources has a direction for each of them, and "
                "one step has one: probe it whole"
            )
            raise user_error("data.feedback.tasks", message, accepted="tasks without `sources`")
        self.still = Snapshot(self.learner, self.step.optimizer)

        self.loss = self._held_out_loss()
        self.down = self._held_out_gradient()
        floor = self.step.meta.preconditioner_floor
        self.down_on_aligned = self._on_aligned(self.down)
        self.preconditioner = self._preconditioner(self.aligned, floor)
        self.preconditioned = product(self.preconditioner, self.down_on_aligned)
        self.preconditioned_full = product(self._preconditioner(self.parameters, floor), self.down)
        self.size = float(vectors.norm({name: p.detach() for name, p in self.aligned.items()}))
        self.rate, self.smoothness = self._pilot()
        with self.still():
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
            self._set_learning_rate()
            self.step.optimizer.step()
            self.momentum_drop = self._drop()

    def draw(self, index: int) -> Point:
        """Predictions and realised drops on the stream's next batch; ``index`` seeds the draw's
        dropout."""
        with self.still():
            batch, pre = self._next(index)
            pre_on_aligned = self._on_aligned(pre)
            downstream = self.parts.feedback.gradients(self.learner)
            heard = {
                name: g for name, g in vectors.mean(downstream).items() if name in pre_on_aligned
            }
            bound = Alignment("lower_bound", self.smoothness)(
                self.down_on_aligned, pre_on_aligned, self.rate
            ).value
            plain = vectors.inner(self.down_on_aligned, pre_on_aligned)
            predicted = {
                "sgd_aligned": self.rate * plain,
                "sgd_full": self.rate * vectors.inner(self.down, pre),
                "sgd_lower_bound": self.rate * bound,
                "sgd_heard": self.rate * vectors.inner(heard, pre_on_aligned),
                "adamw_plain": plain,
                "adamw_preconditioned": vectors.inner(self.preconditioned, pre_on_aligned),
                "adamw_preconditioned_full": vectors.inner(self.preconditioned_full, pre),
                "adamw_heard": vectors.inner(product(self.preconditioner, heard), pre_on_aligned),
            }
            realised = {}
            for name, gradient in (("sgd_aligned", pre_on_aligned), ("sgd_full", pre)):
                with self.still():
                    self._descend(gradient)
                    realised[name] = self._drop()
            with self.still():
                self._seed(index)  # the same dropout as in g_pre
                self.step(MicroBatches((batch,)), self.recipe.learner.learning_rate)
                realised["adamw"] = self._drop()
                update = {
                    name: self.still.saved[name] - p.detach() for name, p in self.parameters.items()
                }
            predicted["adamw_update"] = vectors.inner(self.down, update)
            fraction = float(vectors.norm(self._on_aligned(update))) / self.size
            return Point(
                {name: float(v) for name, v in predicted.items()},
                realised,
                fraction,
                batch.digest(),
            )

    def _pilot(self) -> tuple[float, float]:
        """The SGD rate, and L: the largest ``|g_down(theta+) - g_down(theta)| / |theta+ - theta|``
        on S over the pilots' steps.

        This quotient bounds the curvature along the step from above, which is all that Prop. 2.1
        needs of L."""
        gradients = []
        for index in range(PILOTS):
            with self.still():
                gradients.append(self._on_aligned(self._next(-1 - index)[1]))
        self.rate = STEP_SHARE * self.size * PILOTS / sum(float(vectors.norm(g)) for g in gradients)
        quotients = []
        for gradient in gradients:
            with self.still():
                self._descend(gradient)
                moved = self._on_aligned(self._held_out_gradient())
            change = vectors.norm(vectors.combine((1.0, moved), (-1.0, self.down_on_aligned)))
            quotients.append(float(change / (self.rate * vectors.norm(gradient))))
        return self.rate, max(quotients)

    def _drop(self) -> float:
        """How far the held-out loss is below what it was, in nats."""
        loss = self._held_out_loss()
        if not math.isfinite(loss):
            raise Fault(f"the held-out loss is {loss} after one step; lower learner.learning_rate")
        return self.loss - loss

    def _next(self, index: int) -> tuple[Any, Gradient]:
        """The stream's next batch and ``g_pre`` of its plain task over all parameters."""
        self._seed(index)
        batch = next(self.parts.stream)
        self._seed(index)
        context = self.learner.forward(batch)
        loss = self.learner.loss(context, detached(self.parts.designer.baseline_task(context)))
        return batch, vectors.named(
            self.parameters, torch.autograd.grad(loss, list(self.parameters.values()))
        )

    def _seed(self, index: int) -> None:
        seed = (self.recipe.seed + 1 + PILOTS + index) % 2**31
        seed_run(self.recipe.model_copy(update={"seed": seed}))

    @torch.no_grad()
    def _descend(self, gradient: Gradient) -> None:
        for name, piece in gradient.items():
            self.parameters[name].sub_(piece, alpha=self.rate)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        return math.fsum(float(piece) for piece in self.parts.held_out_loss())

    def _held_out_gradient(self) -> Gradient:
        total = {
            name: torch.zeros_like(vectors.wide(p.detach())) for name, p in self.parameters.items()
        }
        for piece in self.parts.held_out_loss():
            pieces = torch.autograd.grad(piece, list(self.parameters.values()), allow_unused=True)
            for name, gradient in zip(total, pieces, strict=True):
                if gradient is not None:
                    total[name] += gradient
        return total

    def _on_aligned(self, vector: Gradient) -> Gradient:
        return {name: vector[name] for name in self.aligned}

    def _preconditioner(self, parameters: dict[str, nn.Parameter], floor: float) -> Gradient:
        found = adam_preconditioner(self.step.optimizer, parameters, floor)
        if found is None:  # not one gradient of the burn-in was other than zero
            return {
                name: torch.ones_like(vectors.wide(p.detach())) for name, p in parameters.items()
            }
        return found

    def _set_learning_rate(self) -> None:
        for group in self.step.optimizer.param_groups:
            group["lr"] = self.recipe.learner.learning_rate


def product(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Gradient:
    """Element by element, over the names of ``b``."""
    return {name: a[name] * piece for name, piece in b.items()}


def pearson(
    x: Sequence[float], y: Sequence[float]
) -> tuple[float | None, tuple[float, float] | None]:
    """Pearson's r with its 95% interval by Fisher's z, ``tanh(atanh(r) -+ 1.96 / sqrt(n - 3))``.

    Args:
        x: 4 or more finite numbers.
        y: as many.

    Returns:
        ``(None, None)`` where one of the series is constant.

    Raises:
        ValueError: lengths differ, there are fewer than 4 pairs, or a value is not finite.
    """
    if len(x) != len(y) or len(x) < 4 or not all(map(math.isfinite, [*x, *y])):
        raise ValueError(f"accepted: 4 or more pairs of finite numbers; got {len(x)} and {len(y)}")
    a, b = numpy.asarray(x) - numpy.mean(x), numpy.asarray(y) - numpy.mean(y)
    size = float(numpy.linalg.norm(a) * numpy.linalg.norm(b))
    if min(x) == max(x) or min(y) == max(y) or size == 0:
        return None, None
    r = max(-1.0, min(1.0, float(a @ b) / size))
    if abs(r) == 1:
        return r, (r, r)
    reach = 1.959964 / math.sqrt(len(x) - 3)
    return r, (math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach))


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Slope of the least-squares line of ``y`` on ``x``; None where ``x`` is constant."""
    a = numpy.asarray(x) - numpy.mean(x)
    return None if min(x) == max(x) else float(a @ numpy.asarray(y) / (a @ a))


_PANELS = {
    "sgd_aligned": "SGD on S",
    "sgd_full": "SGD on all parameters",
    "sgd_heard": "SGD on S, value as heard",
    "adamw_plain": "AdamW, plain value on S",
    "adamw_preconditioned": "AdamW, optimizer-aware on S",
    "adamw_preconditioned_full": "AdamW, optimizer-aware on all",
}


def scatter(
    predicted: Mapping[str, Sequence[float]],
    realised: Mapping[str, Sequence[float]],
    correlations: Mapping[str, tuple[float | None, tuple[float, float] | None]],
    momentum_drop: float,
    out: Path,
) -> None:
    """Draws ``scatter.png`` and ``scatter.svg``: realised drop against prediction, with the
    least-squares line.

    The dotted line is AdamW's step without a gradient, which the least-squares line should meet
    where the value is 0."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 3).flat, _PANELS.items(), strict=True):
        x, y = numpy.asarray(predicted[name]), 1e3 * numpy.asarray(realised[REALISED[name]])
        nats = name in IN_NATS
        x = 1e3 * x if nats else x / (x.std() or 1.0)
        r, interval = correlations[name]
        axes.axhline(0, color="0.85", zorder=0)
        axes.axvline(0, color="0.85", zorder=0)
        if REALISED[name] == "adamw":
            axes.axhline(
                1e3 * momentum_drop, color="0.5", linestyle=":", zorder=0, label="no gradient"
            )
            axes.legend(loc="lower right", frameon=False)
        axes.plot(x, y, "o", markersize=4, alpha=0.6, markeredgewidth=0, color="#1f6f8b")
        if r is not None and interval is not None:
            ends = numpy.array([x.min(), x.max()])
            axes.plot(
                ends,
                y.mean() + float(slope(list(x), list(y)) or 0) * (ends - x.mean()),
                color="#c1440e",
                lw=1.2,
            )
            title += f"\nr = {r:.3f}  [{interval[0]:.3f}, {interval[1]:.3f}]"
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("predicted drop (millinats)" if nats else "value (standard deviations)")
        axes.set_ylabel("realised drop (millinats)")
    with matplotlib.rc_context({"svg.hashsalt": "vpretrain"}):
        figure.savefig(out / "scatter.png", dpi=120, metadata={"Software": None})
        figure.savefig(out / "scatter.svg", metadata={"Date": None})
