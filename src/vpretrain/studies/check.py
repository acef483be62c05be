"""``check``: everything that can be wrong with a recipe, found before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from vpretrain.config.recipe import load
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.resources import smaller
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.memory import out_of_memory


def check(source: str, overrides: Sequence[str]) -> list[Problem]:
    """All problems of recipe, data, model, memory and disk; nothing is trained or written.

    Args:
        source: a packaged name or a path, as in :func:`vpretrain.config.recipe.load`.
        overrides: ``dotted.key=value`` each.

    Returns:
        Those of the recipe alone where it cannot be read, since they say what else there is to look
        at. Otherwise those of data, model and machine together. ``where`` is ``memory`` or ``disk``
        for what this machine is too small for.
    """
    try:
        recipe = load(source, overrides, schemas=SCHEMAS)
    except UserError as error:
        return list(error.problems)
    try:
        return MODALITIES[recipe.modality]().check(recipe)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return [
            Problem(
                "memory",
                "",
                "",
                f"memory ran out while the run was put together: {smaller(recipe)}",
            )
        ]
