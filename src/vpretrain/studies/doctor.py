"""Which estimator works on this model, kernel, dtype and device; how exact it is; what it costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vpretrain.config.recipe import Recipe
from vpretrain.method.directional import ESTIMATORS, EstimatorUnsupported
from vpretrain.method.directional import estimator as estimator_named
from vpretrain.method.roles import Estimate, Gradient, Task, ValueFunction, detached
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import Modality, Parts
from vpretrain.system.errors import user_error

REPEATS = 7


def doctor(recipe: Recipe) -> dict[str, Any]:
    """Tries every estimator on one batch of the recipe, under the task that its arm makes before
    anything was heard.

    ``cosine`` and ``relative_error`` are of ``dV/d controls``, all that a designer hears, against
    double backward in float64, at the recipe's alignment. ``seconds`` is the median of interleaved
    repeats; ``peak_bytes`` what the estimator allocates on top of what was there. An arm that hears
    nothing gives way to the modality's first that does.

    Returns:
        ``{device, dtype, attention, estimators: [{name, supported, reason, cosine, relative_error,
        seconds, peak_bytes}]}``.

    Raises:
        UserError: no arm of the modality hears feedback.
    """
    modality = MODALITIES[recipe.modality]()
    section = recipe.learner
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    materials = modality.load(recipe)
    recipe, narrow = _listening(recipe, modality, materials)
    wide_recipe = recipe.model_copy(
        update={"learner": section.model_copy(update={"dtype": "float64", "attention": "eager"})}
    )
    wide = modality.build(wide_recipe, materials)
    batch = next(narrow.stream)
    down = wide.feedback.gradients(wide.learner)[:1]
    reference = _Bench(recipe, wide, "double_backward", down, batch).gradient()
    rows: dict[str, dict[str, Any]] = {}
    benches: dict[str, _Bench] = {}
    for name in ESTIMATORS:
        bench = _Bench(recipe, narrow, name, [{n: g.float() for n, g in down[0].items()}], batch)
        row = {
            "name": name,
            "supported": True,
            "reason": "",
            "cosine": None,
            "relative_error": None,
            "seconds": None,
            "peak_bytes": None,
        }
        try:
            gradient = bench.gradient()
            row["cosine"] = float(torch.nn.functional.cosine_similarity(gradient, reference, dim=0))
            row["relative_error"] = float((gradient - reference).norm() / reference.norm())
            row["peak_bytes"] = peak_bytes(bench.value_of)
            benches[name] = bench
        except EstimatorUnsupported as error:
            row |= {"supported": False, "reason": str(error)}
        rows[name] = row
    seconds: dict[str, list[float]] = {name: [] for name in benches}
    for _ in range(REPEATS):
        for name, bench in benches.items():  # A B C A B C: the machine's drift falls on all alike
            started = time.perf_counter()
            bench.value_of()
            seconds[name].append(time.perf_counter() - started)
    for name, taken in seconds.items():
        rows[name]["seconds"] = statistics.median(taken)
    return {
        "device": str(next(narrow.learner.model.parameters()).device),
        "dtype": section.dtype,
        "attention": section.attention,
        "estimators": list(rows.values()),
    }


def _listening(recipe: Recipe, modality: Modality, materials: Any) -> tuple[Recipe, Parts]:
    """The recipe with an arm that hears feedback, its own if that does, and its parts."""
    for arm in (recipe.arm, *modality.arms):
        found = recipe.model_copy(update={"arm": arm})
        parts = modality.build(found, materials)
        if parts.designer.uses_feedback:
            return found, parts
    raise user_error(
        "modality", "none of its arms hears feedback, so nothing is valued", value=recipe.modality
    )


class _Nothing(ValueFunction[Any]):
    """Values every choice at nothing: what is proposed then does not depend on the estimator that
    is tried.
    """

    def __call__(self, context: Any, task: Task) -> Estimate:
        return Estimate(
            torch.zeros(()), tuple(torch.zeros_like(control) for control in task.controls())
        )

    def each(self, context: Any, task: Task) -> list[Estimate]:
        return [self(context, task)]


class _Bench:
    """One estimator on one context: ``dV/d controls`` of the task."""

    def __init__(
        self, recipe: Recipe, parts: Parts, estimator: str, down: list[Gradient], batch: Any
    ) -> None:
        self.context = parts.learner.forward(batch)
        alignment = Alignment(recipe.value.alignment, recipe.value.smoothness)
        estimated = ValueEstimator(parts.learner, alignment, estimator_named(estimator))
        estimated.update(down, None, recipe.learner.learning_rate)
        self.value_of_part = estimated.on_part()
        self.task = detached(parts.designer.make_task(self.context, _Nothing()))

    def value_of(self) -> tuple[Tensor, ...]:
        return self.value_of_part(self.context, self.task).gradient

    def gradient(self) -> Tensor:
        return torch.cat([piece.double().flatten() for piece in self.value_of()])


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes that ``call`` holds at a time, on top of what was held before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        call()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
