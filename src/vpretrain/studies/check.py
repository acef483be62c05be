"""``check``: everything that can be wrong with a recipe, found before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vpretrain.config.recipe import Recipe, load
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.parts import AnyParts
from vpretrain.run.resources import disk_needed, memory_needed, smaller
from vpretrain.run.tracking import missing
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.memory import out_of_memory


@dataclass(frozen=True)
class Needs:
    """What one run takes, about.

    Args:
        memory_bytes: at least; what designer, feedback and blocks hold comes on top.
        disk_bytes: of the run folder at most.
        seconds: of training, without designer and evaluation; None where the budget does not say.
        forward_seconds: what one forward pass took here.
        step_seconds: what a learner step takes, likewise without what comes on top.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float | None
    forward_seconds: float
    step_seconds: float


def needs(recipe: Recipe, parts: AnyParts) -> Needs:
    """Measured by one forward pass of the learner on a batch."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    learner: Any = recipe.learner
    batch = next(parts.stream)
    started = time.perf_counter()
    with torch.no_grad():
        parts.learner.forward(batch)
    forward = time.perf_counter() - started
    budget, accumulate = recipe.budget, learner.accumulate
    limits = []
    if budget.seconds is not None:
        limits.append(budget.seconds)
    steps = [] if budget.steps is None else [float(budget.steps)]
    steps += [] if budget.tokens is None else [budget.tokens / (batch.tokens * accumulate)]
    step = 3 * forward * accumulate  # backward costs twice the forward pass
    limits += [step * count for count in steps]
    model = parts.learner.model
    return Needs(
        memory_needed(model, recipe.checkpoint, tokens=batch.tokens, followers=parts.followers),
        disk_needed(model, recipe.checkpoint, followers=parts.followers),
        min(limits) if limits else None,
        forward,
        step,
    )


@dataclass(frozen=True)
class Examined:
    """What ``check`` says.

    Args:
        problems: those of the recipe alone where it cannot be read, since they say what else there
            is to look at; otherwise those of data, model and machine together. ``where`` is
            ``memory`` or ``disk`` for what this machine is too small for.
        needs: of a run, where nothing is wrong and its checkpoint does not have to be made first.
        warnings: what may make a run useless, but does not stop one; a person was told already.
    """

    problems: list[Problem]
    needs: Needs | None = None
    warnings: Sequence[str] = ()


def check(source: str, overrides: Sequence[str]) -> list[Problem]:
    """All problems of recipe, data, model, memory and disk: those of :func:`examine`."""
    return examine(source, overrides).problems


def examine(source: str, overrides: Sequence[str]) -> Examined:
    """Looks at everything that can be wrong; nothing is trained or written.

    Args:
        source: a packaged name or a path, as in :func:`vpretrain.config.recipe.load`.
        overrides: ``dotted.key=value`` each.
    """
    try:
        recipe = load(source, overrides, schemas=SCHEMAS)
    except UserError as error:
        return Examined(list(error.problems))
    try:
        checked = MODALITIES[recipe.modality]().check(recipe)
        problems = [*missing(recipe.track), *checked.problems]
        if problems or checked.parts is None:
            return Examined(problems, warnings=tuple(checked.warnings))
        return Examined([], needs(recipe, checked.parts), tuple(checked.warnings))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        message = f"memory ran out while the run was put together: {smaller(recipe)}"
        return Examined([Problem("memory", "", "", message)])
