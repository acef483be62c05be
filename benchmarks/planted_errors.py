"""Do the values of documents tell planted errors from right rows, and which S and how much feedback
does it take?

    python benchmarks/planted_errors.py --model FOLDER --data ../shared/data
        [--batches 24] [--blocks 2 8 all] [--rows 16 64 256]

GSM8K rows of the stream (`recipes/language/gsm8k-smollm2.yaml`), a wrong digit in every number of
30% of them. AdamW's moments settle on eight batches at rate 0; then every document of `--batches`
batches is valued exactly, along feedback gradients of so many rows over so many last blocks. The
AUC is the chance that a right row has the higher value of two, with its standard error over
batches; 0.5 is a coin. Beside it that of minus the document's own loss, which asks for no
feedback. Writes `results/planted-errors.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from vpretrain.config import recipe as recipes
from vpretrain.config.recipe import Recipe
from vpretrain.language.steering.rules import Candidates
from vpretrain.language.steering.selection import document_values
from vpretrain.method import vectors
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.parts import Parts
from vpretrain.run.run import Run
from vpretrain.system.contexts import evaluating
from vpretrain.system.files import write_json

ROOT = Path(__file__).parent.parent
FEEDBACK_BATCHES, FEEDBACK_ROWS = 16, 16
SETTLE_STEPS = 8


def load(model: str, data: str, blocks: str, errors: float) -> Recipe:
    """The recipe with next to nothing but GSM8K rows in its stream."""
    return recipes.load(
        str(ROOT / "recipes/language/gsm8k-smollm2.yaml"),
        [
            f"data.root={data}",
            f"learner.model={model}",
            f"learner.aligned_blocks={blocks}",
            f"data.stream.2.rows.corrupt_digits={errors}",
            "data.stream.0.weight=0.001",
            "data.stream.1.weight=0.001",
            f"data.feedback.batches={FEEDBACK_BATCHES}",
            f"data.feedback.batch_size={FEEDBACK_ROWS}",
            f"value.settle_steps={SETTLE_STEPS}",
            "arm=onehot",
        ],
        schemas=SCHEMAS,
    )


def auc(right: list[float], wrong: list[float]) -> float:
    """The chance that a right row's value is the higher one; ties count half."""
    pairs = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    return sum(pairs) / len(pairs)


def jackknife(batches: list[tuple[list[float], list[float]]]) -> dict[str, float]:
    """AUC over all batches, and its standard error with each batch left out in turn."""

    def of(some: list[tuple[list[float], list[float]]]) -> float:
        return auc([x for a, _ in some for x in a], [x for _, b in some for x in b])

    left_out = [of(batches[:i] + batches[i + 1 :]) for i in range(len(batches))]
    spread = statistics.pvariance(left_out) * (len(batches) - 1)
    return {"auc": round(of(batches), 4), "stderr": round(spread**0.5, 4)}


def measure(recipe: Recipe, clean: set[bytes], count: int, rows: list[int]) -> list[dict[str, Any]]:
    """The AUC of values along each amount of feedback, and of the loss."""
    modality = MODALITIES[recipe.modality]()
    parts: Parts[Any, Any, Any] = modality.build(recipe, modality.load(recipe))
    run = Run(recipe, parts, step0={})
    run.start()
    estimator, meta = run.step_once.meta.value_estimator, run.step_once.meta
    gradients = meta.feedback.gradients(parts.learner)
    groups = {n: vectors.mean(gradients[: n // FEEDBACK_ROWS]) for n in rows}
    results: dict[str, list[tuple[list[float], list[float]]]] = {}
    for alignment in ("optimizer_aware", "dot"):
        results |= {f"{alignment}, {n} rows": [] for n in rows}
    results["minus the loss"] = []
    scale = meta.preconditioner()
    assert scale is not None
    directions = [
        {name: scale[name] * piece for name, piece in group.items()} for group in groups.values()
    ] + list(groups.values())
    for _ in range(count):
        batch = next(parts.stream)
        with evaluating(parts.learner.model):
            with torch.no_grad():
                context = parts.learner.forward(batch)
            probe = Candidates.among(context, 1, weighted=True)
            losses = -probe.log_p[:, 0].double()
            values = [
                document_values(context, each.gradient[0])
                for each in estimator.along(context, probe, directions)
            ]
        of_document = torch.zeros(len(batch.documents), dtype=torch.float64)
        counts = context.document.bincount(minlength=len(batch.documents)).clamp_min(1)
        of_document = of_document.index_add(0, context.document, losses) / counts
        planted = [key(d.ids) not in clean for d in batch.documents]
        for name, figures in zip(results, [*values, -of_document], strict=True):
            pairs = [
                (value, wrong)
                for value, wrong, document in zip(
                    figures.tolist(), planted, batch.documents, strict=True
                )
                if document.source == "gsm8k"
            ]
            results[name].append(
                ([v for v, wrong in pairs if not wrong], [v for v, wrong in pairs if wrong])
            )
    return [
        {
            "values": name,
            "right": sum(len(a) for a, _ in result),
            "planted": sum(len(b) for _, b in result),
            **jackknife(result),
        }
        for name, result in results.items()
    ]


def key(ids: Any) -> bytes:
    """What a document is known by."""
    return ",".join(map(str, ids)).encode()


def main() -> None:
    """One line a kind of value and number of blocks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--blocks", nargs="+", default=["2", "8", "all"])
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if given.batches < 2:
        parser.error(f"--batches: {given.batches}: give 2 or more, for a standard error")
    torch.set_num_threads(given.threads)
    modality = MODALITIES["language"]()
    whole = modality.load(load(given.model, given.data, "2", 0.0))
    clean = {key(d.ids) for source in whole.sources for d in source.documents}
    table = []
    for blocks in given.blocks:
        started = time.perf_counter()
        recipe = load(given.model, given.data, blocks, 0.3)
        for row in measure(recipe, clean, given.batches, given.rows):
            table.append({"aligned_blocks": blocks, **row})
            print(table[-1], flush=True)
        print(f"blocks {blocks}: {time.perf_counter() - started:.0f} s", flush=True)
    write_json(
        ROOT / "results" / "planted-errors.json",
        {
            "command": "python benchmarks/planted_errors.py --model FOLDER --data DIR "
            f"--batches {given.batches} --blocks {' '.join(given.blocks)} "
            f"--rows {' '.join(map(str, given.rows))}",
            "model": "/".join(Path(given.model).resolve().parts[-2:]),
            "rows": table,
            "environment": environment(),
        },
    )


if __name__ == "__main__":
    main()
