"""Registry of modalities: entry points of this package and of others.

A package registers a :class:`vpretrain.run.parts.Modality` under the name that recipes give as
``modality``; it is imported only when a recipe asks for it::

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
"""Entry point group through which packages register modalities."""
OWN = "vpretrain"
"""Distribution whose modality names cannot be overridden."""

T = TypeVar("T")


class Installed(Mapping[str, Callable[[], T]]):
    """Maps each installed modality's name to something derived from its class, looked up lazily.

    Args:
        take: derives it from a modality's class.
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
    """Returns entry points by name; cached, as it reads a file of every package on the path."""
    points: dict[str, EntryPoint] = {}
    # This package's own come first and win.
    for point in sorted(entry_points(group=GROUP), key=lambda point: not _is_own(point)):
        points.setdefault(point.name, point)
    return points


def _is_own(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == OWN


def _class_of(point: EntryPoint) -> type[Modality[Any, Any]]:
    """Returns the class behind an entry point.

    Raises:
        UserError: it cannot be imported, or is not a modality.
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
