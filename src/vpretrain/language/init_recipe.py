"""``init``: writes a first recipe from a model and the places of stream, feedback and evaluation.

The version for images is in :mod:`vpretrain.vision.init_recipe`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpretrain.language.init_places import Place, count_rows
from vpretrain.run.resources import readable_size

ROWS_A_STEP = 16
"""Rows of the stream in a learner step: ``batch_size`` times the accumulated batches."""
WINDOW_TOKENS = 512
CANDIDATES = 64


@dataclass(frozen=True)
class Fit:
    """The settings of a learner step that fits into memory.

    Args:
        batch_size: rows in a batch.
        accumulate: batches in a step.
        checkpointing: whether activation checkpointing is needed.
        description: the estimate, in words.
    """

    batch_size: int
    accumulate: int
    checkpointing: bool
    description: str


def fit(model: Any, window: int, available: int | None) -> Fit:
    """The largest batch, a power of two up to :data:`ROWS_A_STEP`, that fits into memory beside
    weights, gradients and AdamW's moments.

    Estimated in float32: 16 bytes a parameter and, for every token of a row,
    ``4 (12 width + 4 inner)`` bytes a block and 12 bytes a vocabulary entry (logits, softmax and
    gradient). With activation checkpointing a block takes ``4 width`` bytes, and one block in full.
    Only half of the remaining memory is used, to leave room for feedback, designer and
    fragmentation.

    Args:
        model: a model on the meta device, of which only sizes are read.
        window: tokens of a row.
        available: memory in bytes; None if unknown, which gives the largest batch.
    """
    config = model.config
    width, depth, inner, vocabulary = (
        int(getattr(config, name, None) or default)
        for name, default in (
            ("hidden_size", 768),
            ("num_hidden_layers", 12),
            ("intermediate_size", 0),
            ("vocab_size", 0),
        )
    )
    fixed = 16 * sum(p.numel() for p in model.parameters())
    block = 4 * (12 * width + 4 * (inner or 4 * width))
    head = 12 * vocabulary
    kept, again = window * (depth * block + head), window * (depth * 4 * width + block + head)
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.3g} M parameters"
    if available is None:
        return Fit(
            ROWS_A_STEP, 1, False, f"{size}; this machine does not say how much memory it has"
        )
    left = (available - fixed) / 2
    checkpointing = left < kept
    row = again if checkpointing else kept
    fits = ROWS_A_STEP
    while fits > 1 and left < fits * row:
        fits //= 2
    description = (
        f"{size} take about {readable_size(fixed)} and a row {readable_size(row)}, of "
        f"{readable_size(available)} that are free"
    )
    return Fit(fits, ROWS_A_STEP // fits, checkpointing, description)


RECIPE = """\
# vpretrain compare {out} --arms onehot,document_weights,token_weights,fixed_random_direction
#
# Written by `vpretrain init`. `vpretrain check {out}` says what is wrong with it, `vpretrain train
# {out}` makes one run. Every key with its value stands in `recipe.yaml` in the folder of a run.
#
# What matters most, in this order: the stream has something to choose between; the model knows this
# kind of text already; feedback and evaluation are about the same thing; then `designer.tilt`.
modality: language
description: {description}
arm: document_weights  # documents weighted by their value to the feedback; `vpretrain arms`: others
budget: {{steps: 500}}  # learner steps; or tokens, seconds, flops: the first used up ends the run
data:
  window_tokens: {window}  # length of a row of the stream; documents are packed into it
  batch_size: {fit.batch_size}  # {fit.description}
  stream:  # what the learner trains on; several sources are mixed by their `weight`
{sources}
  feedback:  # steers by its gradient, every value.meta_period steps; never trained on
    rows: {feedback}
    batch_size: {feedback_rows}
    batches: 2  # their agreement says how far the feedback can be trusted
  evaluation:  # what success is measured on; no row of it may be in the stream or the feedback
    test: {evaluation}
learner:
  model: {model}
  learning_rate: 1.5e-5
  accumulate: {fit.accumulate}  # batches in a step, which is one of {step}
  aligned_blocks: 2  # S: the last blocks, in which gradients are compared
  # dtype: bfloat16  # on a GPU
  # lora: {{r: 8, alpha: 16}}  # adapters alone train
designer:
  kind: document_weights
  tilt: 1.5  # c: a document's weight is from 0 to 1 + c before their mean is made 1; 0: plain
designers:  # keys of other arms, for `compare --arms`
  token_weights: {{tilt: 0.4}}
  closed_form: {{candidates: {candidates}}}
  ascent: {{candidates: {candidates}}}
  field: {{candidates: {candidates}}}
value:
  alignment: optimizer_aware
  meta_period: 8
  memory: 0.9
  settle_steps: 16
evaluate: {{split: test, every: 0, batch_size: 16}}  # `answer: 'REGEX'` scores answers too
checkpoint: {{seconds: 600}}  # a killed run goes on from there when the same command is given again
"""
"""Template that :func:`recipe_of` fills in."""


def recipe_of(
    model: str,
    stream: Sequence[Place],
    feedback: Place,
    evaluation: Place,
    *,
    out: Path,
    shapes: Callable[[str], Any],
    available: int | None,
) -> str:
    """The text of a commented recipe.

    Args:
        model: a folder, a hub id, or a packaged checkpoint.
        stream: unlabeled rows, one source of the recipe each.
        feedback: verified rows.
        evaluation: verified rows for the evaluation.
        out: file name of the recipe.
        shapes: maps the name of a model to the model on the meta device.
        available: memory in bytes, or None; see :func:`fit`.

    Raises:
        UserError: a place or the model cannot be read.
    """
    places = {
        "sources": _sources(stream),
        "feedback": _flow(feedback.section(solutions=True)),
        "evaluation": _flow(evaluation.section(solutions=True)),
    }
    skeleton = shapes(model)
    config = skeleton.config
    window = min(WINDOW_TOKENS, getattr(config, "max_position_embeddings", None) or WINDOW_TOKENS)
    sizes = fit(skeleton, window, available)
    rows = dict(feedback.part).get("rows") or (
        count_rows(files) if (files := feedback.files()) else 64
    )
    step = f"{sizes.batch_size * sizes.accumulate} rows of {window} tokens"
    if sizes.checkpointing:
        step += "\n  activation_checkpointing: true  # less memory, more time"
    return RECIPE.format(
        out=out,
        description=_text(f"{Path(stream[0].path).stem} steered by {Path(feedback.path).stem}"),
        window=window,
        fit=sizes,
        **places,
        feedback_rows=max(1, min(32, rows // 2)),
        model=_text(model),
        step=step,
        candidates=min(CANDIDATES, int(config.vocab_size)),
    )


def _sources(stream: Sequence[Place]) -> str:
    """One line per source; several sources are weighted by their number of documents, so that none
    is repeated more often than the others."""
    lines = []
    for place in stream:
        name, weight = _name(place.path), ""
        if len(stream) > 1:
            name, weight = f"{name}-{place.kind}", f", weight: {_documents(place)}"
        rows = _flow(place.section(solutions=False))
        lines.append(f"    - {{name: {_text(name)}{weight}, rows: {rows}}}")
    return "\n".join(lines)


def _documents(place: Place) -> int:
    """Approximate number of documents in local files: one per text file or row, or more if these
    are longer than a window, at about 4 bytes a token."""
    files = place.files()
    whole = len(files) if place.kind == "text" else count_rows(files)
    size = sum(file.stat().st_size for file in files if isinstance(file, Path))
    return max(whole, size // (4 * WINDOW_TOKENS), 1)


def _name(path: str) -> str:
    return Path(path).stem.strip("*.") or Path(path).parent.name or "stream"


def _text(value: str) -> str:
    """A string quoted for YAML."""
    return json.dumps(value, ensure_ascii=False)


def _flow(section: Mapping[str, Any]) -> str:
    pairs = (
        f"{key}: {_text(value) if isinstance(value, str) else value}"
        for key, value in section.items()
    )
    return "{" + ", ".join(pairs) + "}"
