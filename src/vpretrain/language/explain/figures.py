"""The values of the stream's tokens and what the designer does with them: first as figures, then as
a page.

Values are per token: ``s_t(v) = N dV/d mass_t(v) / w_t`` with N predicted tokens in the batch and
the token's weight ``w_t`` in the loss (1 under ``loss_mean: token``), so that V of a task is the
mean over tokens of ``w_t sum_v mass_t(v) s_t(v)`` and batches of different sizes can be pooled.

Shapes: N predicted tokens of a batch, K candidates, M the designer's own candidates (1 if it has
only the true token).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from vpretrain.language.data.stream import Stream
from vpretrain.language.explain.page import View
from vpretrain.language.explain.token_values import (
    TaskValues,
    ValuedDocument,
    by_source,
    documents_of,
    task_values,
    valued_batches,
)
from vpretrain.language.feedback.preferences import PreferenceSignal
from vpretrain.language.learner import lora
from vpretrain.language.materials import Materials
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.rules import ClosedFormArm
from vpretrain.run.build import seed_run
from vpretrain.run.finished_run import last_record, restore_designer, with_feedback
from vpretrain.run.parts import Modality
from vpretrain.system.errors import user_error
from vpretrain.system.files import write_text
from vpretrain.system.html import document

SEED_OFFSET = 7919
"""Added to the run's seed for the order of the documents, so that they are not the run's first
batches."""


def explain_language(
    modality: Modality[LanguageRecipe, Materials],
    recipe: LanguageRecipe,
    folder: Path,
    *,
    documents: int,
    out: Path,
) -> dict[str, Any]:
    """Reopens a run and writes the page; see :func:`vpretrain.studies.explain.explain`.

    Args:
        modality: the language modality.
        recipe: the run's recipe.
        folder: the run folder.
        documents: number of documents on the page. The other documents of the last batch count in
            the figures of the tasks, but not in those of the sources.
        out: the HTML file.
    """
    recipe = _with_final_model(recipe, folder)
    seed_run(recipe)
    materials = modality.load(recipe)
    parts = modality.build(recipe, materials)
    if recipe.learner.lora is not None:
        parts.feedback.prepare(parts.learner)  # its reference is the learner without adapters
        lora.load(parts.learner.model, folder / "model")
    restore_designer(parts, folder)
    parts.learner.model.eval()
    data = recipe.data
    stream = Stream(
        materials.sources,
        batch_size=data.batch_size,
        window_tokens=data.window_tokens,
        seed=recipe.seed + SEED_OFFSET,
        packing=data.packing,
        pad_id=materials.pad_id,
        loss_mean=recipe.learner.loss_mean,
    )
    value_of = with_feedback(recipe, parts, stream).on_part()
    count = ARMS.keys_of(recipe, ClosedFormArm).candidates
    batches = list(valued_batches(parts, value_of, stream, count, documents))
    totals = task_values(batches, recipe)
    valued = [each for batch in batches for each in documents_of(batch)][:documents]
    if not all(math.isfinite(value) for each in valued for value in each.valued):
        raise user_error(
            "RUN", "token values are not finite; the model of this run is broken", value=str(folder)
        )
    view = View(recipe, folder, materials, valued, totals, parts.designer, last_record(folder))
    style = resources.files("vpretrain.language.explain").joinpath("page.css").read_text()
    write_text(out, document(f"{recipe.description} · explain", view.page(), style=style))
    return {"page": str(out), **_figures(valued, totals)}


def _with_final_model(recipe: LanguageRecipe, folder: Path) -> LanguageRecipe:
    """The recipe with the run's final model as its learner; that of a run with adapters keeps its
    base, into which they are loaded."""
    if recipe.learner.lora is not None:
        return recipe
    tasks = recipe.data.feedback.named().values()
    if any(isinstance(task, PreferenceSignal) for task in tasks):
        message = (
            "preferences are compared with the untouched checkpoint, which the folder of a run "
            "that trained all weights does not hold"
        )
        accepted = "a run with learner.lora, or with another kind of feedback"
        raise user_error("RUN", message, value=str(folder), accepted=accepted)
    model = {"model": str(folder.resolve() / "model")}
    own = {**model, "prepare": None, "config": None, "tokenizer": None}
    return recipe.model_copy(update={"learner": recipe.learner.model_copy(update=own)})


def _figures(documents: Sequence[ValuedDocument], totals: TaskValues) -> dict[str, Any]:
    """The figures that the command prints with the page's path."""
    sources = by_source(documents).items()
    values = asdict(totals)
    rest = {key: values.pop(key) for key in ("tokens", "correlation", "agreement")}
    return {
        "regret": totals.bound - totals.designer,
        "value": values,
        "sources": {source: total / len(values) for source, (total, values, _) in sources},
        "documents": len(documents),
        **rest,
    }
