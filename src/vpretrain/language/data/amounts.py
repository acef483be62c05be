"""Warnings about how much text there is: for the whole run, and in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vpretrain.language.data.rows import Encoded
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.rules import DocumentWeightsArm

MOST_PASSES = 4
"""Number of passes over a text that are about as good as fresh text (Muennighoff et al. 2023,
arXiv:2305.16264)."""
FEW_DOCUMENTS = 4
"""Number of documents in a batch below which weights among them are warned of
(results/dev-few-documents.json)."""

Counts = Mapping[str, Encoded]
"""Counts of tokenisation, keyed by ``stream/SOURCE`` for the sources of the stream."""


def amounts(recipe: LanguageRecipe, counts: Counts) -> list[str]:
    """Returns the warnings of this module for a recipe and the counts of its rows."""
    return [*repeated(recipe, counts), *few_in_a_batch(recipe, counts)]


def repeated(recipe: LanguageRecipe, counts: Counts) -> Iterator[str]:
    """Yields warnings for sources that the budget repeats more than ``MOST_PASSES`` times.

    There are none for a budget in seconds or FLOPs, or for unpacked rows, which are not filled.
    """
    data, budget = recipe.data, recipe.budget
    step = data.batch_size * data.window_tokens * recipe.learner.accumulate
    ends = [end for end in (budget.tokens, budget.steps and budget.steps * step) if end]
    tokens = _tokens_of_a_document(recipe, counts)
    if not ends or not data.packing or not tokens:
        return
    for name, fraction, count in _sources(recipe, counts):
        times = min(ends) / tokens * fraction / count.documents
        if times > MOST_PASSES:
            yield (
                f"warning: stream/{name}: its {count.tokens:,} tokens are read about "
                f"{times:.0f} times over in this run, and more than {MOST_PASSES} times a text "
                "teaches little that is new: give more text, or a smaller budget"
            )


def few_in_a_batch(recipe: LanguageRecipe, counts: Counts) -> Iterator[str]:
    """Yields a warning if the arm weights documents and a batch holds fewer than
    ``FEW_DOCUMENTS``."""
    data, tokens = recipe.data, _tokens_of_a_document(recipe, counts)
    if not tokens or not isinstance(ARMS.section_of(recipe), DocumentWeightsArm):
        return
    rows = data.batch_size
    documents = max(rows, rows * data.window_tokens / tokens) if data.packing else rows
    if documents < FEW_DOCUMENTS:
        yield (
            f"warning: data.batch_size: {rows}: weights of documents are relative within a batch, "
            f"and this one holds about {documents:.1f}: give {FEW_DOCUMENTS} or more, and a lower "
            "learner.accumulate for as many in a step, or take token_weights"
        )


def _sources(recipe: LanguageRecipe, counts: Counts) -> list[tuple[str, float, Encoded]]:
    """The sources that have documents: name, fraction of the draws, and counts."""
    stream = [(source, counts[f"stream/{source.name}"]) for source in recipe.data.stream]
    stream = [(source, count) for source, count in stream if count.documents]
    whole = sum(source.weight for source, _ in stream)
    return [(source.name, source.weight / whole, count) for source, count in stream]


def _tokens_of_a_document(recipe: LanguageRecipe, counts: Counts) -> float:
    """Mean number of tokens in a document that is drawn from the stream; 0 if there are none."""
    sources = _sources(recipe, counts)
    return sum(fraction * count.tokens / count.documents for _, fraction, count in sources)
