"""Which estimator works on this model, kernel, dtype and device; how exact it is; what it costs."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor

from vpretrain.config.recipe import Recipe
from vpretrain.method import vectors
from vpretrain.method.directional import EstimatorUnsupported
from vpretrain.method.estimators import NAMES
from vpretrain.method.estimators import estimator as estimator_named
from vpretrain.method.roles import Estimate, Gradient, Task, ValueFunction, detached
from vpretrain.method.value import Alignment, adam_preconditioner
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import AnyParts, Modality
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error
from vpretrain.system.timing import synchronized_now

SectionT = TypeVar("SectionT", bound=BaseModel)
FIGURES = ("cosine", "relative_error", "seconds", "peak_bytes")
REPEATS = 7
REPEAT_SECONDS = 10.0
"""For all repeats together, about."""
FEW = {"batch_size": 2, "max_documents": 256}
"""Rows of a batch and documents of a source, at most: a few tokens tell how exact an estimator is,
and a stream of millions need not be tokenised for that."""
MOMENT_STEPS = 2
"""Batches from which AdamW's second moments are estimated where the direction reads them."""


def doctor(recipe: Recipe) -> dict[str, Any]:
    """Tries every estimator on a small batch of the recipe, under the task that its arm makes
    before any feedback.

    ``cosine`` and ``relative_error`` are of ``dV/d controls``, all that a designer is given, along
    the recipe's own direction, against double backward in float64 from the learner's own pass.
    ``rounding`` is how far that exact gradient is from the one of a pass in float32, where the
    learner's is in bfloat16: what no estimator can avoid (candidates that the two passes choose
    otherwise included); else None. ``seconds`` is the median of interleaved repeats;
    ``peak_bytes`` what the estimator allocates on top of what was there. An arm whose tasks are not
    valued is replaced by the modality's first whose tasks are. One learner is in memory at a time.

    Returns:
        ``{device, dtype, attention, rounding, estimators: [{name, supported, reason, cosine,
        relative_error, seconds, peak_bytes}]}``.

    Raises:
        UserError: the modality has no arm whose tasks are valued.
    """
    modality = MODALITIES[recipe.modality]()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    data = {name: _small(section) for name, section in recipe if name == "data"}
    recipe = recipe.model_copy(update=data)
    materials = modality.load(recipe)
    recipe, parts, batch = _with_valued_task(recipe, modality, materials)
    _freeze_below(parts)
    direction = _direction(recipe, parts)
    rows, gradients = _try_estimators(recipe, parts, direction, batch)
    device = next(parts.learner.model.parameters()).device
    section = recipe.learner
    del parts
    gc.collect()
    at = recipe, modality, materials, direction, batch
    reference, own_pass = _reference(*at, section.dtype)
    rounding = None
    for name, gradient in gradients.items():
        cosine = torch.nn.functional.cosine_similarity(gradient, reference, dim=0)
        rows[name]["cosine"] = float(cosine)
        rows[name]["relative_error"] = _relative(gradient, reference)
    if section.dtype == "bfloat16" and own_pass:
        rounding = _relative(reference, _reference(*at, "float32")[0])
    return {
        "device": str(device),
        "dtype": section.dtype,
        "attention": section.attention,
        "rounding": rounding,
        "estimators": list(rows.values()),
    }


def _small(section: SectionT) -> SectionT:
    """A section of a recipe, and the sections in it, with the few rows of :data:`FEW`."""
    changed: dict[str, Any] = {}
    for name, value in section:
        if name in FEW:
            changed[name] = min(value or FEW[name], FEW[name])
        elif isinstance(value, BaseModel):
            changed[name] = _small(value)
        elif isinstance(value, list):
            changed[name] = [
                _small(each) if isinstance(each, BaseModel) else each for each in value
            ]
    return section.model_copy(update=changed)


def _freeze_below(parts: AnyParts) -> None:
    """Keeps no graph to what is not aligned; these parts train nothing."""
    aligned = {id(parameter) for parameter in parts.learner.aligned.values()}
    for parameter in parts.learner.model.parameters():
        parameter.requires_grad_(id(parameter) in aligned)


def _direction(recipe: Recipe, parts: AnyParts) -> Gradient:
    """The recipe's own: the feedback's gradient over S, preconditioned where its alignment is."""
    value, aligned = recipe.value, parts.learner.aligned
    preconditioner = None
    if Alignment.of(parts.designer, value.alignment).preconditioned:
        section = recipe.learner
        # Over S alone: the moments of all parameters would be twice the model.
        optimizer = torch.optim.AdamW(aligned.values(), lr=0.0, betas=section.betas)
        for _ in range(MOMENT_STEPS):
            context = parts.learner.forward(next(parts.stream))
            task = detached(parts.designer.baseline_task(context))
            loss = parts.learner.loss(context, task)
            for parameter, gradient in zip(
                aligned.values(),
                torch.autograd.grad(loss, list(aligned.values()), allow_unused=True),
                strict=True,
            ):
                parameter.grad = gradient
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        preconditioner = adam_preconditioner(optimizer, aligned, value.preconditioner_floor)
    down = vectors.mean(parts.feedback.gradients(parts.learner))
    return {
        name: g.double() * (1 if preconditioner is None else preconditioner[name].double())
        for name, g in down.items()
    }


def _try_estimators(
    recipe: Recipe, parts: AnyParts, direction: Gradient, batch: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """The rows of the table, without what the reference is needed for, and each estimator's
    gradient."""
    rows: dict[str, dict[str, Any]] = {}
    benches: dict[str, _Bench] = {}
    gradients: dict[str, Tensor] = {}
    down = [{name: piece.float() for name, piece in direction.items()}]
    context = _context(parts, batch)
    for name in NAMES:
        bench = _Bench(recipe, parts, name, down, context)
        row = rows[name] = dict.fromkeys(("name", "supported", "reason", *FIGURES))
        row |= {"name": name, "supported": True, "reason": ""}
        try:
            started = synchronized_now()
            gradients[name] = bench.gradient()
            row["seconds"] = synchronized_now() - started
            row["peak_bytes"] = peak_bytes(bench.value_of)
            benches[name] = bench
        except EstimatorUnsupported as error:
            row |= {"supported": False, "reason": str(error)}
    seconds: dict[str, list[float]] = {name: [] for name in benches}
    round_seconds = sum(rows[name]["seconds"] for name in benches) or 1.0
    for _ in range(min(REPEATS, int(REPEAT_SECONDS / round_seconds))):
        for name, bench in benches.items():  # A B C A B C: the machine's drift falls on all alike
            started = synchronized_now()
            bench.value_of()
            seconds[name].append(synchronized_now() - started)
    for name, taken in seconds.items():
        if taken:  # the first call counts where it was too slow to be repeated
            rows[name]["seconds"] = statistics.median(taken)
    return rows, gradients


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _reference(
    recipe: Recipe,
    modality: Modality,
    materials: Any,
    direction: Gradient,
    batch: Any,
    dtype: str,
) -> tuple[Tensor, bool]:
    """The gradient by double backward, with S and what follows it in float64; whether the rest is
    in ``dtype``.

    What is below S, most of a large model, is the same for all estimators and stays in ``dtype``. A
    learner that cannot mix the two is float64 as a whole, as is that of a recipe in float64.
    """

    def gradient(dtype: str) -> Tensor:
        changes = {"dtype": dtype, "attention": "eager"}
        if dtype == "bfloat16" and recipe.learner.attention != "flash_attention_2":
            del changes["attention"]  # another kernel would round otherwise
        section = recipe.learner.model_copy(update=changes)
        wide = modality.build(recipe.model_copy(update={"learner": section}), materials)
        context = _context(wide, batch)
        for parameter in wide.learner.aligned.values():
            parameter.data = parameter.data.double()
        return _Bench(recipe, wide, "double_backward", [direction], context).gradient()

    if dtype != "float64":
        with suppress(RuntimeError):
            return gradient(dtype), True
    return gradient("float64"), dtype == "float64"


def _context(parts: AnyParts, batch: Any) -> Any:
    """Without a graph to what is below S, and without dropout: the reference's context, made by
    another learner, must be the same."""
    with torch.no_grad(), evaluating(parts.learner.model):
        return parts.learner.forward(batch)


def _with_valued_task(
    recipe: Recipe, modality: Modality, materials: Any
) -> tuple[Recipe, AnyParts, Any]:
    """The recipe with an arm that uses feedback and whose tasks have controls, its own if
    possible; the arm's parts, and the first batch of their stream."""
    for arm in (recipe.arm, *modality.arms):
        chosen = recipe.model_copy(update={"arm": arm})
        parts = modality.build(chosen, materials)
        if parts.designer.uses_feedback:
            batch = next(parts.stream)
            if parts.designer.make_task(_context(parts, batch), _Nothing()).controls():
                return chosen, parts, batch
        del parts  # before the next learner is in memory
    message = "it has no arm whose tasks are valued, so there is no estimator to try"
    raise user_error("modality", message, value=recipe.modality)


class _Nothing(ValueFunction[Any]):
    """Values every choice at nothing: what is proposed then does not depend on the estimator that
    is tried."""

    def __call__(self, context: Any, task: Task) -> Estimate:
        return Estimate(
            torch.zeros(()), tuple(torch.zeros_like(control) for control in task.controls())
        )

    def each(self, context: Any, task: Task) -> list[Estimate]:
        return [self(context, task)]


class _Bench:
    """One estimator on one context: ``dV/d controls`` of the task."""

    def __init__(
        self, recipe: Recipe, parts: AnyParts, estimator: str, down: list[Gradient], context: Any
    ) -> None:
        self.context = context
        value = recipe.value
        alignment = Alignment.of(parts.designer, value.alignment, value.smoothness)
        estimated = ValueEstimator(parts.learner, alignment, estimator_named(estimator))
        estimated.update(down, None, recipe.learner.learning_rate)
        self.value_of_part = estimated.on_part()
        self.task = detached(parts.designer.make_task(self.context, _Nothing()))

    def value_of(self) -> tuple[Tensor, ...]:
        return self.value_of_part(self.context, self.task).gradient

    def gradient(self) -> Tensor:
        return torch.cat([piece.double().flatten() for piece in self.value_of()])


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """The profiler writes there from C++, whatever Python's ``sys.stderr`` is."""
    standard_error, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        os.close(nowhere)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes that ``call`` holds at a time, on top of what there was before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        _without_standard_error(),
        torch.profiler.profile(activities=activities, profile_memory=True) as profiler,
    ):
        call()
    bytes_now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            bytes_now += event.nbytes()
            most = max(most, bytes_now)
    return most
