"""Checks that tokenizer, window, rows and memory fit the learner's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.language.materials import Materials
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.recipe.learner import LearnerSection
from vpretrain.run.resources import memory_shortage
from vpretrain.system import sharding
from vpretrain.system.errors import Problem, UserError, user_error


def aligned_of(section: LearnerSection, model: Any) -> dict[str, nn.Parameter]:
    """The recipe's aligned parameters S, by name."""
    return aligned_parameters(
        model,
        Anatomy.of(model),
        blocks=section.aligned_blocks,
        patterns=section.aligned_patterns,
        norm=section.aligned_norm,
        head=section.aligned_head,
    )


def too_large(recipe: LanguageRecipe, model: Any, followers: int) -> list[Problem]:
    """The problem of a model that, with ``followers`` copies beside it, does not fit into memory.
    Only the model's shapes are read."""
    data, section, shared = recipe.data, recipe.learner, []
    if section.shard:
        shared = sharding.below(model, aligned_of(section, model))[1]
    return memory_shortage(
        model,
        recipe.checkpoint,
        tokens=data.batch_size * data.window_tokens,
        followers=followers,
        shared=shared,
    )


def unfit_tokenizer(tokenizer: Any, config: Any) -> list[Problem]:
    """The problem of a tokenizer with more tokens than the model's vocabulary."""
    highest = max(tokenizer.get_vocab().values())
    if highest < config.vocab_size:
        return []
    message = (
        "the tokenizer has more tokens than the model's vocabulary; name the tokenizer it "
        "was trained with"
    )
    return [
        Problem(
            "learner.model", f"token ids up to {highest}", f"up to {config.vocab_size - 1}", message
        )
    ]


def unfit_window(
    recipe: LanguageRecipe, config: Any, longest: Mapping[str, int] | None = None
) -> list[Problem]:
    """Problems of a window, or of the ``longest`` row of a set (tokens by recipe key), that exceeds
    the model's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    fix = "shorten the window (data.window_tokens) or the rows (data.feedback.max_tokens)"
    return [
        Problem(
            where,
            f"{length} tokens",
            f"at most {positions}",
            f"the model has not so many positions; {fix}",
        )
        for where, length in {
            "data.window_tokens": recipe.data.window_tokens,
            **(longest or {}),
        }.items()
        if positions is not None and length > positions
    ]


def check_fit(recipe: LanguageRecipe, model: Any, materials: Materials) -> None:
    """Raises ``UserError`` if tokenizer, window or rows do not fit the model, or there are no
    evaluation documents."""
    held_out = {recipe.evaluate.split: materials.evaluation, **materials.also}
    rows = {
        "data.feedback.rows": [
            document
            for task in materials.tasks.values()
            for document in (*task.documents, *task.rejected.values())
        ],
        **{f"data.evaluation.{name}": documents for name, documents in held_out.items()},
    }
    longest = {
        where: max((len(document.ids) for document in documents), default=0)
        for where, documents in rows.items()
    }
    if problems := unfit_tokenizer(materials.tokenizer, model.config) + unfit_window(
        recipe, model.config, longest
    ):
        raise UserError(*problems)
    if not materials.evaluation:
        raise user_error(
            f"data.evaluation.{recipe.evaluate.split}",
            "no row is left to evaluate on: prompts alone fill data.feedback.max_tokens; raise it",
            value=recipe.data.feedback.max_tokens,
            accepted="more",
        )
