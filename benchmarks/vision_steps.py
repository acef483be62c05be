"""What steering pictures costs: steered steps beside plain ones, arm by arm in turn.

    python benchmarks/vision_steps.py [--shape scenes | vit-s] [--period 4] [--rounds 5]
        [--arms NAME ...] [--out results/vision-steps-scenes.json]

`scenes` is the recipe `demo-vision`, `vit-s` the recipe `bench-vit` (12 blocks, 384 wide, 112
pixels, random weights). A steered arm's step is period - 1 plain steps and one meta step, measured
apart; feedback, heads and all that a meta step does is in it. "view_weights, one-sided" and the
like value by one-sided differences, the others by central ones; "view_weights, sparing" has the
settings of the study `vision-sparing`. Speed and memory are ratios to plain.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from turns import Turn, compared, in_turn, parser, save, show
from vision_parts import vision_recipe

from vpretrain.method.accumulation import next_batches
from vpretrain.run.build import new_step, seed_run
from vpretrain.vision import Vision

ONE_SIDED = ["value.estimator=one_sided_difference"]
SPARING = [*ONE_SIDED, "learner.aligned_blocks=3", "value.shrink=false"]
SHAPES = {
    "scenes": ("demo-vision", []),
    "vit-s": (
        "bench-vit",
        ["data.feedback.head.warmup_steps=1", "learner.head_warmup_steps=1"],
    ),
}
SMALL_DATA = ["data.stream=[{name: scenes, pictures: {kind: scenes, split: stream, count: 256}}]"]
STEPS = 2
"""Of each kind in a turn."""


def overrides(arm: str) -> list[str]:
    """What the name of a row stands for."""
    name, _, how = arm.partition(", ")
    return [f"arm={name}", *{"": [], "one-sided": ONE_SIDED, "sparing": SPARING}[how]]


def steps(arm: str, shape: str, turn: Turn) -> None:
    """Meta steps where the arm has any, and plain ones."""
    source, words = SHAPES[shape]
    recipe = vision_recipe(source, [*SMALL_DATA, *words, *overrides(arm)])
    seed_run(recipe)
    parts = Vision().build(recipe, Vision().load(recipe))
    step, rate = new_step(recipe, parts), recipe.learner.learning_rate
    while True:
        turn.wait()
        for kind in ("meta", "plain") if step.meta.designer.uses_feedback else ("plain",):
            for _ in range(STEPS):
                batch = next_batches(parts.stream, parts.designer.draws)
                turn.start()
                step.uncounted(batch, rate, 0.0, meta_due=kind == "meta")
                turn.stop(kind)


def main() -> None:
    """Prints the table, and writes the JSON."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--shape", choices=SHAPES, default="scenes")
    made.add_argument("--period", type=int, default=4)
    arms = ("plain", "ascent", "view_weights", "view_weights, one-sided", "closed_form")
    made.add_argument("--arms", nargs="+", default=arms)
    given = made.parse_args()
    if given.quick:
        given.rounds = 1
    bodies = {arm: functools.partial(steps, arm, given.shape) for arm in given.arms}
    for at, result in enumerate(in_turn(bodies, given.rounds), start=1):
        rows = compared(result, given.period)
        show(rows, f"{given.shape}, a meta step in {given.period}; after {at} rounds")
        save(
            "vision-steps",
            given,
            shape=given.shape,
            period=given.period,
            finished_rounds=at,
            table=rows,
            rounds={arm: each["rounds"] for arm, each in result.items()},
        )


if __name__ == "__main__":
    main()
