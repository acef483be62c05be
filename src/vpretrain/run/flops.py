"""Floating-point operations of a step, including designer and meta step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from vpretrain.config.recipe import Recipe
from vpretrain.method.accumulation import next_batches
from vpretrain.method.step import SteeredStep
from vpretrain.run.build import new_step
from vpretrain.run.checkpoint import size
from vpretrain.run.parts import AnyParts
from vpretrain.run.state import RunState
from vpretrain.system.errors import NonFinite

_TRIES = 10


@dataclass(frozen=True)
class Cost:
    """FLOPs of one step, by its kind.

    Args:
        plain: on the baseline task, as before ``value.start_step`` and while steering is off.
        steered: on the designer's task.
        meta: with a meta step; as ``steered``, for designers that use no feedback.
    """

    plain: float = 0.0
    steered: float = 0.0
    meta: float = 0.0

    def of(self, *, meta_due: bool, steers: bool) -> float:
        """Returns the cost of a step that takes a meta step or not, and steers or not."""
        return self.meta if meta_due else self.steered if steers else self.plain

    def each(self, change: Callable[[float], float]) -> Cost:
        """Returns the cost with every figure changed likewise."""
        return Cost(change(self.plain), change(self.steered), change(self.meta))


def count(step: SteeredStep[Any, Any, Any], parts: AnyParts, accumulate: int = 1) -> Cost:
    """Measures the FLOPs of each kind of step by taking one of each at learning rate 0.

    ``torch.utils.flop_counter`` counts matrix products and attention. The parts are restored
    afterwards, so that a run can begin with them; ``step`` must not be used again. Batches have a
    fixed shape, so steps of one kind differ only in the number of predicted tokens.

    Args:
        step: fresh, or about to take a meta step.
        parts: of the run.
        accumulate: batches per step.

    Raises:
        NonFinite: a kind of step failed on each of 10 batches.
    """
    return rehearse(step, parts, accumulate).cost


def cost_in_budget(recipe: Recipe, parts: AnyParts) -> Cost | None:
    """Returns :func:`count` if the recipe's budget is in FLOPs; otherwise None."""
    if recipe.budget.flops is None:
        return None
    return count(new_step(recipe, parts), parts, recipe.learner.accumulate)


@dataclass(frozen=True)
class Rehearsal:
    """Measured needs of a run.

    Args:
        cost: see :func:`count`.
        checkpoint_bytes: size of a checkpoint once every part of the run has allocated its state.
    """

    cost: Cost
    checkpoint_bytes: int


def rehearse(step: SteeredStep[Any, Any, Any], parts: AnyParts, accumulate: int = 1) -> Rehearsal:
    """Returns :func:`count` and the size of a checkpoint.

    Takes the arguments of :func:`count`; all processes must call it together.
    """
    movable: list[Any] = [parts.learner, parts.designer, parts.feedback, parts.stream]
    movable += [] if parts.meta_batches is None else [parts.meta_batches]
    before = [copy.deepcopy(part.state_dict()) for part in movable]
    buffers = {name: buffer.clone() for name, buffer in parts.learner.model.named_buffers()}
    step.count = step.meta.start  # before that step, tasks are the baseline's
    # A selector values every batch of a step. Any other designer learns from the first one only,
    # and each other batch costs a step without meta.
    together = 1 if parts.designer.selector is None else accumulate
    if parts.designer.uses_feedback:
        _counted(step, parts, meta_due=True)  # also measures the estimator's step, once per run
        meta = _counted(step, parts, together, meta_due=True)
        steered = _counted(step, parts, together, meta_due=False)
        step.count = step.meta.start - 1
        plain = _counted(step, parts, together, meta_due=False)
    else:
        meta = steered = plain = _counted(step, parts, together, meta_due=False)
    checkpoint_bytes = size(RunState(parts, step).state_dict())
    for part, state in zip(movable, before, strict=True):
        part.load_state_dict(state)
    for name, buffer in parts.learner.model.named_buffers():
        buffer.copy_(buffers[name])
    more = accumulate - together
    plain, meta, steered = plain * (1 + more), meta + more * steered, steered * (1 + more)
    return Rehearsal(Cost(plain, steered, meta), checkpoint_bytes)


def _counted(
    step: SteeredStep[Any, Any, Any], parts: AnyParts, batches: int = 1, *, meta_due: bool
) -> float:
    """Returns the FLOPs of the next step of so many batches that succeeds.

    As in the run, a batch that raises NonFinite is skipped.
    """

    def take() -> float:
        batch = next_batches(parts.stream, batches * parts.designer.draws)
        with FlopCounterMode(display=False) as counter:
            step.uncounted(batch, 0.0, 0.0, meta_due=meta_due)
        return float(counter.get_total_flops())

    for _ in range(_TRIES - 1):
        with suppress(NonFinite):
            return take()
    return take()
