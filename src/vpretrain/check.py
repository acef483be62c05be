"""``check``: everything that can be wrong with a recipe, found before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from vpretrain.errors import Problem, UserError
from vpretrain.modalities import MODALITIES, SCHEMAS
from vpretrain.recipe import load


def check(source: str, overrides: Sequence[str]) -> list[Problem]:
    """All problems of recipe, data and model; none are left to be found by ``train``."""
    try:
        recipe = load(source, overrides, schemas=SCHEMAS)
    except UserError as error:
        return list(error.problems)
    return MODALITIES[recipe.modality]().check(recipe)
