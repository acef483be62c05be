"""Sections of several kinds, each declared where it is implemented: one file per kind.

A recipe key takes one of them, selected by ``kind``. The kinds are looked up when a value is read,
so a kind can be declared after the recipe's class.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationInfo,
    create_model,
)
from pydantic_core import CoreSchema, core_schema

from vpretrain.config.section import Section


class KindSection(Section):
    """The keys of one kind, and its static properties."""

    kind: str = ""
    """Name of the kind; set by its declaration."""

    description: ClassVar[str] = ""


SectionT = TypeVar("SectionT", bound=KindSection)
KindT = TypeVar("KindT", bound=KindSection)


class Kinds(Generic[SectionT]):
    """The declared kinds, by name."""

    def __init__(self) -> None:
        self.kinds: dict[str, type[SectionT]] = {}

    def declare(self, kind: str, description: str) -> Callable[[type[KindT]], type[KindT]]:
        """Returns a class decorator that declares the class as the section of a kind.

        Args:
            kind: its name in recipes.
            description: one sentence.
        """

        def add(section: type[KindT]) -> type[KindT]:
            kind_field: Any = (Literal.__getitem__(kind), kind)
            made = create_model(
                section.__name__,
                __base__=section,
                __module__=section.__module__,
                __doc__=section.__doc__,
                kind=kind_field,
            )
            made.description = description
            self.kinds[kind] = made  # type: ignore[assignment]
            return made

        return add

    @property
    def by_kind(self) -> KindChoice:
        """The annotation of a key that takes one of the sections."""
        return KindChoice(lambda: tuple(self.kinds.values()), one_of)


def one_of(*sections: type[KindSection]) -> Any:
    """Returns the union of sections, discriminated by ``kind``."""
    return Annotated[Union[sections], Field(discriminator="kind")]  # noqa: UP007


def discover(package: ModuleType) -> None:
    """Imports every module of a package, so that its declarations are registered."""
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")


@dataclass(frozen=True)
class KindChoice:
    """A pydantic type that is resolved when a value is read.

    Args:
        sections: returns the sections declared so far.
        combine: builds the type from them.
        read: converts what pydantic read to the value.
    """

    sections: Callable[[], tuple[type[KindSection], ...]]
    combine: Callable[..., Any]
    read: Callable[[Any], Any] = lambda read: read

    def validate(self, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, KindSection):
            return value
        adapter = _adapter(self.combine, self.sections())
        if info.mode == "json":  # JSON has no tuples or paths, which strict Python mode requires
            return self.read(adapter.validate_json(json.dumps(value)))
        return self.read(adapter.validate_python(value))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(_plain, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(_adapter(self.combine, self.sections()).core_schema)


@lru_cache
def _adapter(
    combine: Callable[..., Any], sections: tuple[type[KindSection], ...]
) -> TypeAdapter[Any]:
    return TypeAdapter(combine(*sections))


def _plain(value: Any, info: Any) -> Any:
    if isinstance(value, KindSection):
        return value.model_dump(mode=info.mode)
    # Sections by kind, without defaults: a key not given here is shared with another section.
    return {
        kind: section.model_dump(mode=info.mode, exclude_unset=True)
        for kind, section in value.items()
    }
