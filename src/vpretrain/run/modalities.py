"""Which modalities are installed: entry points, those of this package and those of others alike.

A package brings one under the name that recipes give as ``modality``; it names a
:class:`vpretrain.run.parts.Modality`, which is imported only when a recipe asks for it::

    [project.entry-points."vpretrain.modalities"]
    image-text = "image_text:ImageText"
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from vpretrain.config.recipe import Recipe
from vpretrain.run.parts import Modality
from vpretrain.system.errors import UserError, user_error

GROUP = "vpretrain.modalities"
"""Of the entry points through which packages bring modalities."""
OWN = "vpretrain"
"""The distribution whose modalities nobody takes the names of."""

T = TypeVar("T")


class Installed(Mapping[str, Callable[[], T]]):
    """Something of every installed modality, by the modality's name; looked up when asked for.

    Args:
        take: from a modality's class to what is wanted.
    """

    def __init__(self, take: Callable[[type[Modality[Any, Any]]], T]) -> None:
        self.take = take

    def __getitem__(self, name: str) -> Callable[[], T]:
        point = _points(tuple(sys.path))[name]
        return lambda: self.take(_class_of(point))

    def __contains__(self, name: object) -> bool:
        return name in _points(tuple(sys.path))

    def __iter__(self) -> Iterator[str]:
        return iter(_points(tuple(sys.path)))

    def __len__(self) -> int:
        return len(_points(tuple(sys.path)))


@lru_cache
def _points(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """By name; finding them reads a file of every package that is installed on the path."""
    found: dict[str, EntryPoint] = {}
    # Those of this package come first, as they win.
    for point in sorted(entry_points(group=GROUP), key=lambda point: not _is_own(point)):
        found.setdefault(point.name, point)
    return found


def _is_own(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == OWN


def _class_of(point: EntryPoint) -> type[Modality[Any, Any]]:
    """The class behind an entry point.

    Raises:
        UserError: it cannot be imported, or is no modality.
    """
    owner = point.dist.name if point.dist is not None else point.value
    try:
        loaded = point.load()
    except UserError:
        raise
    except Exception as error:  # whatever somebody else's module raises
        raise user_error(
            "modality",
            f"{owner} brings this modality, and its {point.value} cannot be imported ({error}); "
            "fix or remove it",
            value=point.name,
        ) from error
    needed = ("schema", "load", "build")
    if missing := [name for name in needed if not hasattr(loaded, name)]:
        raise user_error(
            "modality",
            f"{point.value} of {owner} is no modality: it has no {', no '.join(missing)}",
            value=point.name,
            accepted="a subclass of vpretrain.run.parts.Modality",
        )
    modality: type[Modality[Any, Any]] = loaded
    return modality


SCHEMAS: Mapping[str, Callable[[], type[Recipe]]] = Installed(lambda modality: modality.schema)
MODALITIES: Mapping[str, Callable[[], Modality[Any, Any]]] = Installed(lambda modality: modality())
