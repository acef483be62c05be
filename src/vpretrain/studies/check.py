"""``check``: finds everything that can be wrong with a recipe before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import torch

from vpretrain.config.recipe import Recipe, load
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.parts import FEW_ROWS, AnyParts, Reads
from vpretrain.run.resources import disk_needed, kept_for_backward, memory_needed, smaller
from vpretrain.run.tracking import missing
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.memory import out_of_memory
from vpretrain.system.timing import synchronized_now

FIRST_LOOK_SECONDS = 600.0
"""Target duration of a first comparison of two runs, which shows whether everything works."""
_FEWEST_STEPS = 10


@dataclass(frozen=True)
class FirstLook:
    """A run short enough to try first.

    Args:
        overrides: recipe overrides that shorten it.
        seconds: estimated time, with steering and an evaluation before and after.
        pair_seconds: estimated time of a comparison with the unsteered baseline.
    """

    overrides: str
    seconds: float
    pair_seconds: float


@dataclass(frozen=True)
class Needs:
    """Estimated needs of one run.

    Args:
        memory_bytes: lower bound, of weights, gradient, Adam's moments and what a forward pass
            keeps; designer, feedback, and what the libraries keep for themselves are not counted.
        disk_bytes: upper bound for the run folder.
        seconds: training time, settling included, without steering and evaluation; None if the
            budget does not determine it.
        forward_seconds: measured time of one forward pass.
        step_seconds: time of a learner step, without steering.
        meta_seconds: time that a meta step adds; None if unknown.
        evaluation_seconds: time of a pass over the held-out rows; None if unknown.
        first_look: a shorter run, if this one is long.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float | None
    forward_seconds: float
    step_seconds: float
    meta_seconds: float | None = None
    evaluation_seconds: float | None = None
    first_look: FirstLook | None = None


def needs(recipe: Recipe, parts: AnyParts, reads: Reads | None = None) -> Needs:
    """Estimates a run's needs from one forward pass of the learner on a batch."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    learner: Any = recipe.learner
    batch = next(parts.stream)
    model = parts.learner.model
    started = synchronized_now()
    activations = kept_for_backward(model, lambda: parts.learner.forward(batch))
    forward = synchronized_now() - started
    budget, accumulate = recipe.budget, learner.accumulate
    step = 3 * forward * accumulate  # backward costs twice the forward pass
    settling = step * recipe.value.settle_steps * parts.on_stream
    limits = [] if budget.seconds is None else [budget.seconds]
    if budget.steps is not None:
        limits.append(step * budget.steps + settling)
    if budget.tokens is not None:
        limits.append(step * budget.tokens / (batch.tokens * accumulate) + settling)
    estimate = Needs(
        memory_needed(model, recipe.checkpoint, followers=parts.followers) + activations,
        disk_needed(model, recipe.checkpoint, followers=parts.followers),
        min(limits) if limits else None,
        forward,
        step,
    )
    if reads is not None:
        a_token = forward / batch.tokens
        meta = 3 * a_token * reads.feedback_tokens + 3 * forward  # the value takes a pass or two
        evaluation = a_token * reads.held_out_tokens
        estimate = replace(estimate, meta_seconds=meta, evaluation_seconds=evaluation)
    if estimate.seconds is None or estimate.seconds <= FIRST_LOOK_SECONDS / 2:
        return estimate
    return replace(estimate, first_look=first_look(recipe, estimate, reads))


def first_look(recipe: Recipe, need: Needs, reads: Reads | None) -> FirstLook:
    """Returns a shorter run that takes half of :data:`FIRST_LOOK_SECONDS`.

    It has as many steps as fit, without accumulation, a fifth of them to settle, all of them
    steered, and fewer held-out rows if their evaluation is slow. If even the minimum number of
    steps takes too long, batches are smaller.

    Args:
        recipe: of the long run.
        need: its needs.
        reads: data it reads in addition to the stream.
    """
    learner: Any = recipe.learner
    step, measuring = need.step_seconds / learner.accumulate, need.evaluation_seconds or 0.0
    meta = step if need.meta_seconds is None else need.meta_seconds
    period, room = recipe.value.meta_period, FIRST_LOOK_SECONDS / 2
    lighter = reads.lighter if reads else None
    light = lighter is not None and _FEWEST_STEPS * (step + meta / period) > room
    if lighter is not None and light:
        # A meta step costs as much as a step for the value, plus the feedback.
        meta = step * lighter.stream + max(0.0, meta - step) * lighter.feedback
        step *= lighter.stream
    steps = max(_FEWEST_STEPS, int(room / (step + meta / period)))
    settle = min(recipe.value.settle_steps, steps // 5)
    overrides = [f"budget.steps={steps - settle}"]
    if settle < recipe.value.settle_steps:
        overrides.append(f"value.settle_steps={settle}")
    if recipe.value.start_step:  # what is not steered tells nothing of steering
        overrides.append("value.start_step=0")
    if learner.accumulate > 1:
        overrides.append("learner.accumulate=1")
    if lighter is not None and light:
        overrides.append(lighter.overrides)
    if reads and reads.fewer and measuring > FIRST_LOOK_SECONDS / 10:
        overrides.append(reads.fewer)
        measuring *= FEW_ROWS / reads.held_out_rows
    metas = ceil(settle / period) + ceil((steps - settle) / period)
    plain = steps * step + measuring
    steered = plain + metas * meta
    # Step 0 is evaluated once per run, or once per comparison.
    return FirstLook(" ".join(overrides), steered + measuring, plain + steered + measuring)


@dataclass(frozen=True)
class Examined:
    """The result of ``check``.

    Args:
        problems: problems of the recipe alone if it cannot be read, since data and model are then
            unknown; otherwise those of data, model and machine. ``where`` is ``memory`` or ``disk``
            if the machine is too small.
        needs: of a run, if nothing is wrong and its checkpoint does not have to be made first.
        warnings: what may make a run useless but does not stop it; already shown to the user.
    """

    problems: list[Problem]
    needs: Needs | None = None
    warnings: Sequence[str] = ()


def check(source: str, overrides: Sequence[str]) -> list[Problem]:
    """Returns all problems of recipe, data, model, memory and disk that :func:`examine` finds."""
    return examine(source, overrides).problems


def examine(
    source: str, overrides: Sequence[str], read: Callable[[str, list[str]], Recipe] | None = None
) -> Examined:
    """Checks everything that can be wrong; nothing is trained or written.

    Args:
        source: a packaged name or a path, as in :func:`vpretrain.config.recipe.load`.
        overrides: ``dotted.key=value`` each.
        read: reads the recipe from both, in place of that function.
    """
    try:
        read = read or partial(load, schemas=SCHEMAS)
        recipe = read(source, [*overrides])
    except UserError as error:
        return Examined(list(error.problems))
    try:
        checked = MODALITIES[recipe.modality]().check(recipe)
        problems = [*missing(recipe.track), *checked.problems]
        if problems or checked.parts is None:
            return Examined(problems, warnings=tuple(checked.warnings))
        return Examined([], needs(recipe, checked.parts, checked.reads), tuple(checked.warnings))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        message = f"memory ran out while the run was put together: {smaller(recipe)}"
        return Examined([Problem("memory", "", "", message)])
