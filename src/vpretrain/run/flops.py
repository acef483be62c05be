"""What a step costs in floating-point operations, designer and meta step charged."""

from __future__ import annotations

import copy
from collections.abc import Mapping
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

Cost = Mapping[bool, float]
"""FLOPs of one step, without (False) and with (True) a meta step."""
_TRIES = 10


def count(step: SteeredStep[Any, Any, Any], parts: AnyParts, accumulate: int = 1) -> Cost:
    """FLOPs of each kind of step (``torch.utils.flop_counter``: products and attention), counted
    while one of each is taken on one batch, at learning rate 0.

    The parts are as before afterwards, so that a run can begin with them; ``step`` is used up.
    Batches have a fixed shape: what varies between steps of a kind is the number of predicted
    tokens alone.

    Args:
        step: fresh, or about to take a meta step.
        parts: of the run.
        accumulate: batches a step.

    Raises:
        NonFinite: a step of a kind could not be taken on any of 10 batches.
    """
    return rehearse(step, parts, accumulate).cost


def cost_in_budget(recipe: Recipe, parts: AnyParts) -> Cost | None:
    """:func:`count` where the recipe's budget is in FLOPs; None: no need to count."""
    if recipe.budget.flops is None:
        return None
    return count(new_step(recipe, parts), parts, recipe.learner.accumulate)


@dataclass(frozen=True)
class Rehearsal:
    """What a run will use.

    Args:
        cost: see :func:`count`.
        checkpoint_bytes: of a checkpoint, once every part of the run holds what it will hold.
    """

    cost: Cost
    checkpoint_bytes: int


def rehearse(step: SteeredStep[Any, Any, Any], parts: AnyParts, accumulate: int = 1) -> Rehearsal:
    """:func:`count`, and how large a checkpoint will be; the same arguments, all processes
    together."""
    movable: list[Any] = [parts.learner, parts.designer, parts.feedback, parts.stream]
    movable += [] if parts.meta_batches is None else [parts.meta_batches]
    before = [copy.deepcopy(part.state_dict()) for part in movable]
    buffers = {name: buffer.clone() for name, buffer in parts.learner.model.named_buffers()}
    counted: dict[bool, float] = {}
    step.count = step.meta.start  # before it tasks are the baseline's
    if parts.designer.uses_feedback:  # the first measures the difference's step, once a run
        _counted(step, parts, meta_due=True)
    for meta in (True, False) if parts.designer.uses_feedback else (False,):
        counted[meta] = _counted(step, parts, meta_due=meta)
    checkpoint_bytes = size(RunState(parts, step).state_dict())
    for part, state in zip(movable, before, strict=True):
        part.load_state_dict(state)
    for name, buffer in parts.learner.model.named_buffers():
        buffer.copy_(buffers[name])
    # The designer looks at the first batch; each of the others adds a step without a meta step.
    rest = (accumulate - 1) * counted[False]
    return Rehearsal({meta: n + rest for meta, n in counted.items()}, checkpoint_bytes)


def _counted(step: SteeredStep[Any, Any, Any], parts: AnyParts, *, meta_due: bool) -> float:
    """FLOPs of the next step that can be taken: a batch on which a checker fails, or a loss is not
    finite, is left out here as in the run."""

    def take() -> float:
        batch = next_batches(parts.stream, parts.designer.draws)
        with FlopCounterMode(display=False) as counter:
            step.uncounted(batch, 0.0, 0.0, meta_due=meta_due)
        return float(counter.get_total_flops())

    for _ in range(_TRIES - 1):
        with suppress(NonFinite):
            return take()
    return take()
