"""Do values of documents tell more when they look ahead?

    python benchmarks/lookahead.py --model FOLDER --data ../shared/data [--batches 10]
        [--steps 1 8 24] [--learning-rate 1e-4] [--threads 1]

The stream of `recipes/language/gsm8k-smollm2.yaml`, a wrong digit in every number of 30% of its
GSM8K rows. Documents are valued along the gradient of 64 and of 256 feedback rows, as it is and by
AdamW's measure, and by the fall of their loss towards copies of S after so many steps of Adam, each
on 16 fresh rows. Two AUCs, with standard errors over batches (0.5 is a coin): that a right GSM8K
row has a higher value than one with wrong digits (`planted`), and than a document of the other
sources (`relevant`). Beside them those of minus the document's own loss, which asks for no
feedback. Writes `results/lookahead.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from planted_errors import jackknife, key
from torch import Tensor

from vpretrain.config import recipe as recipes
from vpretrain.config.recipe import Recipe
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.steering.rules import Candidates
from vpretrain.language.steering.selection import document_values
from vpretrain.method import vectors
from vpretrain.method.directional import CentralDifference
from vpretrain.method.lookahead import Lookahead
from vpretrain.method.meta_step import MetaStep
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.parts import Parts
from vpretrain.run.run import Run
from vpretrain.system.contexts import evaluating
from vpretrain.system.files import write_json

ROOT = Path(__file__).parent.parent
Pairs = tuple[list[float], list[float]]


def load(given: argparse.Namespace, errors: float) -> Recipe:
    """The recipe with four feedback batches of 16 rows and two steps to settle."""
    return recipes.load(
        str(ROOT / "recipes/language/gsm8k-smollm2.yaml"),
        [
            f"data.root={given.data}",
            f"learner.model={given.model}",
            f"data.stream.2.rows.corrupt_digits={errors}",
            "data.feedback.batches=4",
            "data.feedback.batch_size=16",
            "value.memory=0",
            "value.settle_steps=2",
            "arm=document_weights",
        ],
        schemas=SCHEMAS,
    )


def directions(
    meta: MetaStep[Any, Any, Any], given: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those that values are derivatives along, and the ways of copies after so many steps."""
    learner = meta.learner
    gradients = [vectors.mean(meta.feedback.gradients(learner)) for _ in range(4)]
    scale = meta.preconditioner()
    assert scale is not None
    along: dict[str, Any] = {}
    for name, gradient in (("64 rows", gradients[0]), ("256 rows", vectors.mean(gradients))):
        along |= {
            name: gradient,
            f"{name}, optimizer-aware": {n: scale[n] * piece for n, piece in gradient.items()},
        }
    ways, done = {}, 0
    looking = Lookahead(
        meta.feedback, batches=1, steps=0, learning_rate=given.learning_rate, memory=1.0
    )
    for steps in sorted(given.steps):
        looking.steps, done = steps - done, steps
        (way,) = looking.gradients(learner)
        ways[f"{steps} steps ahead"] = {name: piece.clone() for name, piece in way.items()}
    return along, ways


def valued(learner: CausalLearner, batch: Any, along: Any, ways: Any) -> list[Tensor]:
    """The values of a batch's documents along each, and minus their losses."""
    derivative = ValueEstimator(learner, Alignment("dot"), CentralDifference())
    finite = ValueEstimator(learner, Alignment("lookahead"), CentralDifference())
    with evaluating(learner.model), torch.no_grad():
        context = learner.forward(batch)
    probe = Candidates.among(context, 1, weighted=True)
    estimates = derivative.along(context, probe, list(along.values()))
    estimates += finite.along(context, probe, list(ways.values()))
    count = len(batch.documents)
    sizes = context.document.bincount(minlength=count).clamp_min(1)
    scores = torch.zeros(count, dtype=torch.float64)
    scores = scores.index_add(0, context.document, probe.log_p[:, 0].double()) / sizes
    return [*(document_values(context, each.gradient[0]) for each in estimates), scores]


def main() -> None:
    """One line a way to value."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 8, 24])
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    modality = MODALITIES["language"]()
    whole = modality.load(load(given, 0.0))
    clean = {key(d.ids) for source in whole.sources for d in source.documents}
    recipe = load(given, 0.3)
    parts: Parts[Any, Any, Any] = modality.build(recipe, modality.load(recipe))
    run = Run(recipe, parts, step0={})
    run.start()
    along, ways = directions(run.step_once.meta, given)
    names = [*along, *ways, "minus the loss"]
    planted: dict[str, list[Pairs]] = {name: [] for name in names}
    relevant: dict[str, list[Pairs]] = {name: [] for name in names}
    for _ in range(given.batches):
        batch = next(parts.stream)
        values = valued(parts.learner, batch, along, ways)
        ours = [document.source == "gsm8k" for document in batch.documents]
        right = [o and key(d.ids) in clean for o, d in zip(ours, batch.documents, strict=True)]
        for name, figures in zip(names, values, strict=True):
            each = list(zip(figures.tolist(), ours, right, strict=True))
            good = [value for value, _, whole_row in each if whole_row]
            planted[name].append((good, [v for v, own, ok in each if own and not ok]))
            relevant[name].append((good, [v for v, own, _ in each if not own]))
    rows = [
        {"values": name, "planted": jackknife(planted[name]), "relevant": jackknife(relevant[name])}
        for name in names
    ]
    for row in rows:
        print(row, flush=True)
    words = f"--batches {given.batches} --steps {' '.join(map(str, given.steps))}"
    write_json(
        ROOT / "results" / "lookahead.json",
        {
            "command": f"python benchmarks/lookahead.py --model FOLDER --data DIR {words} "
            f"--learning-rate {given.learning_rate:g}",
            "model": "/".join(Path(given.model).resolve().parts[-2:]),
            "rows": rows,
            "environment": {k: v for k, v in environment().items() if k != "command"},
        },
    )


if __name__ == "__main__":
    main()
