"""Which modalities there are: two that come with the package, each imported only when a recipe asks
for it, and others'.

A package from outside brings one as an entry point of the group :data:`GROUP`, by the name that
recipes give as ``modality``. It names a class that is made without arguments
(:class:`FromOutside`)::

    [project.entry-points."vpretrain.modalities"]
    image-text = "image_text:ImageText"
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from vpretrain.config.recipe import Recipe
from vpretrain.method.roles import Explain, Modality
from vpretrain.system.errors import user_error

GROUP = "vpretrain.modalities"
"""Of the entry points through which packages bring modalities."""


class FromOutside(Modality, Protocol):
    """What an entry point makes: a modality that also says what its recipes look like."""

    schema: type[Recipe]
    """The class of its recipes."""


T = TypeVar("T")


class Known(UserDict[str, T]):
    """What this package has by modality, and behind it what others bring; these are looked for when
    they are asked for.

    Args:
        own: of this package; nobody from outside takes their names.
        outside: what to take of an entry point.
    """

    def __init__(self, own: Mapping[str, T], outside: Callable[[EntryPoint], T]) -> None:
        super().__init__(own)
        self.outside = outside

    def __missing__(self, name: str) -> T:
        for point in entry_points(group=GROUP, name=name):
            return self.outside(point)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self.data or bool(
            isinstance(name, str) and entry_points(group=GROUP, name=name)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(
            dict.fromkeys([*self.data, *(point.name for point in entry_points(group=GROUP))])
        )

    def __len__(self) -> int:
        return len(list(iter(self)))


def _brought(point: EntryPoint) -> Any:
    """The class behind an entry point.

    Raises:
        UserError: it cannot be imported, or is no modality.
    """
    owner = point.dist.name if point.dist is not None else point.value
    try:
        found = point.load()
    except Exception as error:  # whatever somebody else's module raises
        message = (
            f"{owner} brings this modality, and its {point.value} cannot be imported "
            f"({error}); mend or remove it"
        )
        raise user_error("modality", message, value=point.name) from error
    if missing := [
        name for name in ("schema", "arms", "load", "build") if not hasattr(found, name)
    ]:
        message = f"{point.value} of {owner} is no modality: it has no {', no '.join(missing)}"
        raise user_error(
            "modality", message, value=point.name, accepted="see vpretrain.method.roles.Modality"
        )
    return found


def _schema_from_outside(point: EntryPoint) -> Callable[[], type[Recipe]]:
    return lambda: _brought(point).schema


def _modality_from_outside(point: EntryPoint) -> Callable[[], Modality]:
    return lambda: _brought(point)()


def _language_recipe() -> type[Recipe]:
    from vpretrain.language.recipe import LanguageRecipe

    return LanguageRecipe


def _language() -> Modality:
    from vpretrain.language import Language

    return Language()


def _explain_language() -> Explain:
    from vpretrain.language.explain.figures import explain_language

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
            raise user_error(
                "modality", message, value="vision", accepted="pip install 'vpretrain[vision]'"
            )


SCHEMAS: Known[Callable[[], type[Recipe]]] = Known(
    {"language": _language_recipe, "vision": _vision_recipe}, _schema_from_outside
)
MODALITIES: Known[Callable[[], Modality]] = Known(
    {"language": _language, "vision": _vision}, _modality_from_outside
)
EXPLAINERS: dict[str, Callable[[], Explain]] = {"language": _explain_language}
