"""What a step costs in floating-point operations, designer and meta step charged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from vpretrain.method.accumulation import next_batches
from vpretrain.method.step import SteeredStep
from vpretrain.run.parts import AnyParts

BATCHES = 3

Cost = Mapping[bool, float]
"""FLOPs of one step, without (False) and with (True) a meta step."""


def count(step: SteeredStep[Any, Any, Any], parts: AnyParts, accumulate: int = 1) -> Cost:
    """Mean FLOPs of both kinds of step over a few of each (``torch.utils.flop_counter``: products
    and attention).

    Counting takes other kernels than running does, so that a counted step is not bit for bit the
    step it counts: the parts given here are used up, and a run needs fresh ones. Batches have a
    fixed shape; what varies between steps of a kind is the number of predicted tokens alone.

    Args:
        step: of the run.
        parts: of the run.
        accumulate: batches a step.
    """
    counted: dict[bool, list[int]] = {False: [], True: []}
    step.count = step.meta.start  # before it tasks are the baseline's
    if parts.designer.uses_feedback:  # the first measures the central difference's step, once a run
        step.take(next_batches(parts.stream, accumulate), 0.0, 0.0, meta_due=True)
    for meta in (True, False) if parts.designer.uses_feedback else (False,):
        for _ in range(BATCHES):
            with FlopCounterMode(display=False) as counter:
                step.take(next_batches(parts.stream, accumulate), 0.0, 0.0, meta_due=meta)
            counted[meta].append(counter.get_total_flops())
    return {meta: sum(flops) / len(flops) for meta, flops in counted.items() if flops}
