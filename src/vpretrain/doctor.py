"""Which estimator works on this model, kernel, dtype and device; how exact it is; what it costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vpretrain.appraisal import Appraiser
from vpretrain.contracts import Gradient
from vpretrain.directional import ESTIMATORS, EstimatorUnsupported
from vpretrain.modalities import MODALITIES
from vpretrain.recipe import Recipe
from vpretrain.value import Alignment

REPEATS = 7


def doctor(recipe: Recipe) -> dict[str, Any]:
    """Tries every estimator on one batch of the recipe with the paper's designer.

    ``cosine`` and ``relative_error`` are of the designer's gradient ``dV/d phi`` against double backward in float64, at
    the recipe's alignment. ``seconds`` is the median of interleaved repeats; ``peak_bytes`` what the estimator allocates
    on top of what was there.

    Returns:
        ``{device, dtype, attention, estimators: [{name, supported, reason, cosine, relative_error, seconds, peak_bytes}]}``.
    """
    modality = MODALITIES[recipe.modality]()
    section = recipe.learner
    recipe = recipe.model_copy(update={"arm": "ascent"})
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    materials = modality.load(recipe)
    wide_recipe = recipe.model_copy(
        update={"learner": section.model_copy(update={"dtype": "float64", "attention": "eager"})}
    )
    wide, narrow = modality.build(wide_recipe, materials), modality.build(recipe, materials)
    batch = next(narrow.stream)
    down = wide.feedback.gradients(wide.learner)[:1]
    reference = _Bench(recipe, wide, "double_backward", down, batch).gradient()
    rows: dict[str, dict[str, Any]] = {}
    benches: dict[str, _Bench] = {}
    for name in ESTIMATORS:
        bench = _Bench(recipe, narrow, name, [{n: g.float() for n, g in down[0].items()}], batch)
        row = {"name": name, "supported": True, "reason": "", "cosine": None, "relative_error": None, "seconds": None,
               "peak_bytes": None}  # fmt: skip
        try:
            gradient = bench.gradient()
            row["cosine"] = float(torch.nn.functional.cosine_similarity(gradient, reference, dim=0))
            row["relative_error"] = float((gradient - reference).norm() / reference.norm())
            row["peak_bytes"] = peak_bytes(bench.appraise)
            benches[name] = bench
        except EstimatorUnsupported as error:
            row |= {"supported": False, "reason": str(error)}
        rows[name] = row
    seconds: dict[str, list[float]] = {name: [] for name in benches}
    for _ in range(REPEATS):
        for name, bench in benches.items():  # A B C A B C: the machine's drift falls on all alike
            started = time.perf_counter()
            bench.appraise()
            seconds[name].append(time.perf_counter() - started)
    for name, taken in seconds.items():
        rows[name]["seconds"] = statistics.median(taken)
    return {
        "device": str(next(narrow.learner.model.parameters()).device),
        "dtype": section.dtype,
        "attention": section.attention,
        "estimators": list(rows.values()),
    }


class _Bench:
    """One estimator on one context: the cotangent of the task, and the designer's gradient that follows from it."""

    def __init__(self, recipe: Recipe, parts: Any, estimator: str, down: list[Gradient], batch: Any) -> None:
        self.designer = parts.designer
        self.designer.network.double()  # so that what differs is the learner's side
        self.context = parts.learner.observe(batch)
        alignment = Alignment(recipe.value.alignment, recipe.value.smoothness)
        self.appraiser = Appraiser(parts.learner, alignment, ESTIMATORS[estimator])
        self.appraiser.hear(down, None, recipe.learner.learning_rate)
        self.task = self.designer.propose(self.context)

    def appraise(self) -> tuple[Tensor, ...]:
        return self.appraiser(self.context, self.task).gradient

    def gradient(self) -> Tensor:
        controls = self.task.controls()
        cotangents = tuple(g.to(c.dtype) for g, c in zip(self.appraise(), controls, strict=True))
        parameters = list(self.designer.network.parameters())
        pieces = torch.autograd.grad(controls, parameters, cotangents, allow_unused=True, retain_graph=True)
        return torch.cat([piece.double().flatten() for piece in pieces if piece is not None])


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes that ``call`` holds at a time, on top of what was held before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
