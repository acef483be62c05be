"""Which modalities there are. The one place that names them; each is imported only when a recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable

from vpretrain.contracts import Explain, Modality
from vpretrain.recipe import Recipe


def _language_recipe() -> type[Recipe]:
    from vpretrain.language.recipe import LanguageRecipe

    return LanguageRecipe


def _language() -> Modality:
    from vpretrain.language import Language

    return Language()


def _explain_language() -> Explain:
    from vpretrain.language.explain import explain_language

    return explain_language


def _vision_recipe() -> type[Recipe]:
    from vpretrain.vision.recipe import VisionRecipe

    return VisionRecipe


def _vision() -> Modality:
    from vpretrain.vision import Vision

    return Vision()


SCHEMAS: dict[str, Callable[[], type[Recipe]]] = {"language": _language_recipe, "vision": _vision_recipe}
MODALITIES: dict[str, Callable[[], Modality]] = {"language": _language, "vision": _vision}
EXPLAINERS: dict[str, Callable[[], Explain]] = {"language": _explain_language}
