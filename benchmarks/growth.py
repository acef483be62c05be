"""How the cost of steering grows with vocabulary, candidates, length and learner: seconds of a step
over the one-hot step's.

    python benchmarks/growth.py [--arms closed_form field token_weights] [--rounds 3] [--quick]
    [--out results/growth.json]

One axis at a time from a base shape, arms in turn in one process, one thread. A step counts seven
plain steps and one meta step in eight. Above 1 is slower than one-hot.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
from trainer import PERIOD, RATE, Shape, our_step
from turns import parser, per_step, save

from vpretrain.method.accumulation import next_batches

BASE = Shape(vocabulary=32000, width=512, blocks=4, length=256, feedback_rows=8)
QUICK = Shape(300, 64, 2, 32, 1, 8, 4)
AXES = {
    "vocabulary": (
        replace(BASE, vocabulary=1000),
        replace(BASE, vocabulary=8000),
        BASE,
        replace(BASE, vocabulary=151936),
    ),
    "candidates": (replace(BASE, candidates=8), BASE, replace(BASE, candidates=256)),
    "length": (replace(BASE, length=64), BASE, replace(BASE, length=1024)),
    "learner": (
        replace(BASE, width=256, blocks=4),
        BASE,
        replace(BASE, width=896, blocks=8),
    ),
}


def measured(shape: Shape, arms: list[str], rounds: int) -> dict[str, dict]:
    """By arm: the median of its seconds over one-hot's of the same round, and the range."""
    result: dict[str, list[float]] = {arm: [] for arm in arms}
    made = {arm: our_step(arm, shape) for arm in ("onehot", *arms)}
    seconds = {}
    for turn in range(rounds + 1):
        for arm, (step, stream) in made.items():
            steps = []
            steered = step.meta.designer.uses_feedback
            for kind in ("meta", "plain", "plain") if steered else ("plain", "plain"):
                batch, began = next_batches(stream, 1), time.process_time()
                step.uncounted(batch, RATE, 0.0, meta_due=kind == "meta")
                steps.append({"kind": kind, "cpu": time.process_time() - began})
            seconds[arm] = per_step(steps, PERIOD)
            if turn and arm in result:
                result[arm].append(seconds[arm] / seconds["onehot"])
    return {
        arm: {"ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
        for arm, ratios in result.items()
    }


def main() -> None:
    """Prints a line a shape, and writes them."""
    made = parser(__doc__, rounds=3)
    made.add_argument("--arms", nargs="+", default=["closed_form", "field", "token_weights"])
    made.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    given = made.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        given.rounds = 1
    rows = []
    print(f"{'axis':12} {'shape':62} " + " ".join(f"{arm:>24}" for arm in given.arms))
    for axis in given.axes:
        for shape in (QUICK,) if given.quick else AXES[axis]:
            arms = measured(shape, given.arms, given.rounds)
            said = " ".join(
                f"{name} {getattr(shape, name)}"
                for name in ("vocabulary", "candidates", "length", "width", "blocks")
            )
            cells = " ".join(
                f"{arms[arm]['ratio']:8.3f} [{arms[arm]['range'][0]:.3f}, "
                f"{arms[arm]['range'][1]:.3f}]"
                for arm in given.arms
            )
            print(f"{axis:12} {said:62} {cells}", flush=True)
            rows.append({"axis": axis, "shape": vars(shape), "arms": arms})
    save(
        "growth",
        given,
        base=vars(QUICK if given.quick else BASE),
        rounds=given.rounds,
        meta_period=PERIOD,
        rows=rows,
    )


if __name__ == "__main__":
    main()
