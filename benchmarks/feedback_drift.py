"""Do kept activations of the feedback rows spare anything that a rarer meta step does not?

    python benchmarks/feedback_drift.py RECIPE [KEY=VALUE ...] [--steps 0 8 32 64] [--rows 32]
        [--moments 4] [--out FILE]

The gradient of the feedback could be had from the suffix alone if the activations at its input
were kept from an earlier step. For plain training, from several moments of a run, this compares
with the gradient that many feedback rows have now the gradient of `--rows` rows
  now:    computed afresh,
  kept:   the same rows through today's suffix, on activations of n steps ago,
  old:    the same rows' gradient of n steps ago, left as it was,
  others: as many other rows, computed afresh;
and `kept` and `old` with `now`. All figures are cosines over S, means over the moments. Writes
`results/feedback-drift.json`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vpretrain.config import recipe as recipes
from vpretrain.language.data.rows import Document
from vpretrain.language.feedback.gradient import Sampled
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.method import vectors
from vpretrain.method.feedback import MultiTaskFeedback
from vpretrain.method.roles import Gradient
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.run import Run
from vpretrain.system.files import write_json

ROOT = Path(__file__).parent.parent
REFERENCE_BATCHES = 8  # of the many rows


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A block's input, which architectures pass by position or by name."""
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def keeping(block: nn.Module, kept: list[Tensor]) -> Iterator[None]:
    """Appends the block's inputs to `kept`."""

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(hidden_of(args, kwargs).detach().clone())

    hook = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def putting_in(block: nn.Module, kept: list[Tensor]) -> Iterator[None]:
    """Gives the block the inputs in `kept`, in order, in the place of what comes."""
    left = iter(kept)

    def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (next(left), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": next(left)}

    hook = block.register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def cosine(a: Gradient, b: Gradient) -> float:
    """Of two gradients over S."""
    return float(vectors.inner(a, b) / (vectors.norm(a) * vectors.norm(b)))


def measure(run: Run, steps: list[int]) -> dict[int, dict[str, float]]:
    """The cosines after each number of steps from where the run is."""
    tasks, learner = run.parts.feedback, run.parts.learner
    assert isinstance(tasks, MultiTaskFeedback) and isinstance(learner, CausalLearner)
    (feedback,) = tasks.tasks.values()
    assert isinstance(feedback, Sampled)
    block, pad_id = learner.suffix.modules[0], feedback.samplers[0].pad_id
    ours, others, *rest = (sampler.draw() for sampler in feedback.samplers)

    def gradient(documents: list[Document]) -> Gradient:
        return feedback.gradient(learner, documents, pad_id)

    kept: list[Tensor] = []
    with keeping(block, kept):
        old = gradient(ours)
    result: dict[int, dict[str, float]] = {}
    taken = 0
    for n in steps:
        for _ in range(n - taken):
            drawn = run.next_batch()
            batch, metrics = run.take(drawn)
            run.advance(batch, drawn)
            run.record(drawn, metrics)
        taken = n
        now, many = gradient(ours), vectors.mean([gradient(batch) for batch in rest])
        with putting_in(block, kept):
            from_kept = gradient(ours)
        result[n] = {
            "now": cosine(now, many),
            "kept": cosine(from_kept, many),
            "old": cosine(old, many),
            "others": cosine(gradient(others), many),
            "kept with now": cosine(from_kept, now),
            "old with now": cosine(old, now),
        }
    return result


def main() -> None:
    """One line a number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 8, 32, 64])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--moments", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "feedback-drift.json")
    options = parser.parse_intermixed_args()
    recipe = recipes.load(
        options.recipe,
        [
            *options.overrides,
            "arm=onehot",
            "value.memory=0",
            f"data.feedback.batch_size={options.rows}",
            f"data.feedback.batches={2 + REFERENCE_BATCHES}",
            f"budget.steps={options.moments * max(options.steps) + 1}",
            "evaluate.every=0",
        ],
        schemas=SCHEMAS,
    )
    modality = MODALITIES[recipe.modality]()
    run = Run(recipe, modality.build(recipe, modality.load(recipe)), step0={})
    run.start()
    moments = [measure(run, options.steps) for _ in range(options.moments)]
    results = {
        str(n): {
            name: round(statistics.fmean(moment[n][name] for moment in moments), 4)
            for name in moments[0][n]
        }
        for n in options.steps
    }
    for n, figures in results.items():
        print(n, *(f"{name} {value:.3f}" for name, value in figures.items()), sep="  ")
    machine = {key: what for key, what in environment().items() if key != "command"}
    shown = {
        "command": f"python benchmarks/feedback_drift.py {Path(options.recipe).name} "
        f"--steps {' '.join(map(str, options.steps))} --moments {options.moments}",
        "rows": options.rows,
        "moments": options.moments,
        "reference_rows": REFERENCE_BATCHES * options.rows,
        "cosines_after_steps": results,
        "environment": machine,
    }
    write_json(options.out, shown)


if __name__ == "__main__":
    main()
