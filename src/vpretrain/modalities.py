"""Which modalities there are. The one place that names them; each is imported only when a recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from vpretrain.contracts import Explain, Modality
from vpretrain.errors import user_error
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
    _need_vision()
    from vpretrain.vision.recipe import VisionRecipe

    return VisionRecipe


def _vision() -> Modality:
    _need_vision()
    from vpretrain.vision import Vision

    return Vision()


def _need_vision() -> None:
    for library in ("kornia", "torchmetrics", "sklearn"):
        if find_spec(library) is None:
            message = f"vision needs {library}, which is not installed; install the extra"
            raise user_error("modality", message, value="vision", accepted="pip install 'vpretrain[vision]'")


SCHEMAS: dict[str, Callable[[], type[Recipe]]] = {"language": _language_recipe, "vision": _vision_recipe}
MODALITIES: dict[str, Callable[[], Modality]] = {"language": _language, "vision": _vision}
EXPLAINERS: dict[str, Callable[[], Explain]] = {"language": _explain_language}
