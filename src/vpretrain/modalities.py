"""Which modalities there are. The one place that names them; each is imported only when a recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable

from vpretrain.contracts import Modality
from vpretrain.recipe import Recipe


def _language_recipe() -> type[Recipe]:
    from vpretrain.language.recipe import LanguageRecipe

    return LanguageRecipe


def _language() -> Modality:
    from vpretrain.language import Language

    return Language()


SCHEMAS: dict[str, Callable[[], type[Recipe]]] = {"language": _language_recipe}
MODALITIES: dict[str, Callable[[], Modality]] = {"language": _language}
