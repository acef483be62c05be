"""``check``: everything that can be wrong with a recipe, found before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vpretrain.config.recipe import Recipe, load
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.parts import FEW_ROWS, AnyParts, HeldOut
from vpretrain.run.resources import disk_needed, memory_needed, smaller
from vpretrain.run.tracking import missing
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.memory import out_of_memory


FIRST_LOOK_SECONDS = 600.0
"""Of a comparison of two runs that shows whether everything works, if the machine allows it."""
_STEERED = 1.5
"""A step costs so much more where it is steered, about."""
_FEWEST_STEPS = 10


@dataclass(frozen=True)
class FirstLook:
    """A run that is short enough to try.

    Args:
        overrides: of the recipe.
        seconds: that it takes, about, with steering and two evaluations.
    """

    overrides: str
    seconds: float


@dataclass(frozen=True)
class Needs:
    """What one run takes, about.

    Args:
        memory_bytes: at least; what designer, feedback and blocks hold comes on top.
        disk_bytes: of the run folder at most.
        seconds: of training, settling included, without designer and evaluation; None where the
            budget does not say.
        forward_seconds: what one forward pass took here.
        step_seconds: what a learner step takes, likewise without what comes on top.
        evaluation_seconds: what a pass over the held-out rows takes; None where that is not known.
        first_look: a shorter run, where this one is long.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float | None
    forward_seconds: float
    step_seconds: float
    evaluation_seconds: float | None = None
    first_look: FirstLook | None = None


def needs(recipe: Recipe, parts: AnyParts, held_out: HeldOut | None = None) -> Needs:
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
    step = 3 * forward * accumulate  # backward costs twice the forward pass
    limits = [] if budget.seconds is None else [budget.seconds]
    if budget.steps is not None:
        limits.append(step * (budget.steps + recipe.value.settle_steps * parts.on_stream))
    if budget.tokens is not None:
        limits.append(step * budget.tokens / (batch.tokens * accumulate))
    evaluation = None if held_out is None else forward * held_out.tokens / batch.tokens
    seconds = min(limits) if limits else None
    long = seconds is not None and seconds > FIRST_LOOK_SECONDS / 2
    return Needs(
        memory_needed(
            parts.learner.model, recipe.checkpoint, tokens=batch.tokens, followers=parts.followers
        ),
        disk_needed(parts.learner.model, recipe.checkpoint, followers=parts.followers),
        seconds,
        forward,
        step,
        evaluation,
        first_look(recipe, step, held_out, evaluation) if long else None,
    )


def first_look(
    recipe: Recipe, step: float, held_out: HeldOut | None, evaluation: float | None
) -> FirstLook:
    """As many steps as go into half of :data:`FIRST_LOOK_SECONDS`, without accumulation, and a
    fifth of them to settle; of held-out rows that take long some.

    Args:
        recipe: of the long run.
        step: seconds of its learner step.
        held_out: what it measures on.
        evaluation: seconds of that.
    """
    learner: Any = recipe.learner
    each = _STEERED * step / learner.accumulate
    steps = max(_FEWEST_STEPS, int(FIRST_LOOK_SECONDS / 2 / each))
    settle = min(recipe.value.settle_steps, steps // 5)
    overrides, measuring = [f"budget.steps={steps - settle}"], evaluation or 0.0
    if settle < recipe.value.settle_steps:
        overrides.append(f"value.settle_steps={settle}")
    if learner.accumulate > 1:
        overrides.append("learner.accumulate=1")
    if held_out and held_out.fewer and measuring > FIRST_LOOK_SECONDS / 10:
        overrides.append(held_out.fewer)
        measuring *= FEW_ROWS / held_out.rows
    return FirstLook(" ".join(overrides), steps * each + 2 * measuring)


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
        return Examined([], needs(recipe, checked.parts, checked.held_out), tuple(checked.warnings))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        message = f"memory ran out while the run was put together: {smaller(recipe)}"
        return Examined([Problem("memory", "", "", message)])
