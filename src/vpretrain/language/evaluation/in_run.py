"""Evaluation during a run: held-out NLL, greedy answers, and benchmarks (``evaluate.tasks``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vpretrain.language.data.batch import padded
from vpretrain.language.data.layout import Layout
from vpretrain.language.evaluation.held_out import greedy_exact_match, negative_log_likelihood
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.materials import Materials
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.run.scores import Score
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import renamed
from vpretrain.system.sampling import Order


def benchmarks_of(recipe: LanguageRecipe) -> dict[str, tuple[Any, list[Any]]]:
    """The benchmarks of ``evaluate.tasks`` with their problems, by name; lm-eval is required only
    if there are any."""
    if not recipe.evaluate.tasks:
        return {}
    from vpretrain.language.evaluation.benchmark_run import require
    from vpretrain.language.evaluation.benchmarks import BENCHMARKS
    from vpretrain.language.evaluation.problems import read as problems_of

    require()
    root, rows = recipe.data.root, recipe.evaluate.task_rows
    with renamed({"--data-root": "data.root"}):
        return {
            name: (BENCHMARKS[name], problems_of(BENCHMARKS[name], root, rows))
            for name in recipe.evaluate.tasks
        }


def evaluate(
    recipe: LanguageRecipe, materials: Materials, learner: CausalLearner
) -> dict[str, Score]:
    """The scores on ``evaluate.split``, ``evaluate.also`` and ``evaluate.tasks``."""
    section, split = recipe.evaluate, recipe.evaluate.split
    with learner.computing():
        scores = {
            f"{name}/nll": negative_log_likelihood(
                learner, held_out, batch_size=section.batch_size, pad_id=materials.pad_id
            )
            for name, held_out in {split: materials.evaluation, **materials.also}.items()
        }
        if section.answer is not None:
            scores[f"{split}/pass@1"] = greedy_exact_match(
                learner,
                Layout(materials.tokenizer, parse_special_tokens=recipe.data.parse_special_tokens),
                materials.texts.evaluation,
                pattern=section.answer,
                new_tokens=section.new_tokens,
                batch_size=section.batch_size,
            )
    if materials.benchmarks:
        from vpretrain.language.evaluation.scoring import Sampling, score_learner

        sampling = Sampling(new_tokens=section.task_tokens, batch_size=section.batch_size)
        with renamed({"--new-tokens": "evaluate.task_tokens"}):
            scores |= score_learner(learner, materials.tokenizer, materials.benchmarks, sampling)
    return scores


HELD_OUT_ROWS = 256
"""Number of rows of ``evaluate.split`` that the one-step probe uses if it draws no batch."""


def held_out_loss(
    recipe: LanguageRecipe, materials: Materials, learner: CausalLearner, draw: int | None = None
) -> Iterator[Tensor]:
    """Yields scalars that sum to the mean NLL of the tokens of held-out solutions (eq. 38, with the
    mean over tokens), of the first rows or of the ``draw``-th random batch. They are float64, since
    one step changes the loss very little."""
    documents = materials.evaluation[:HELD_OUT_ROWS]
    if draw is not None:
        rows, order = materials.evaluation, Order(len(materials.evaluation), f"probe/{recipe.seed}")
        count = min(len(rows), recipe.data.feedback.batch_size)
        documents = [rows[order[draw * count + place]] for place in range(count)]
    size = recipe.evaluate.batch_size
    batches = [
        padded(documents[at : at + size], pad_id=materials.pad_id).to(learner.device)
        for at in range(0, len(documents), size)
    ]
    count = sum(batch.predicted_tokens for batch in batches)
    for batch in batches:
        with evaluating(learner.model):
            losses, _ = learner.token_losses(batch)
        yield losses.double().sum() / count
