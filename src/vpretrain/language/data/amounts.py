"""A warning about how much text there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vpretrain.language.data.rows import Encoded
from vpretrain.language.recipe import LanguageRecipe

MOST_PASSES = 4
"""Number of passes over a text that are about as good as fresh text (Muennighoff et al. 2023,
arXiv:2305.16264)."""

Counts = Mapping[str, Encoded]
"""Counts of tokenisation, keyed by ``stream/SOURCE`` for the sources of the stream."""


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
