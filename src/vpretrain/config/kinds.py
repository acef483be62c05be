"""Kinds of a section that are declared where they are implemented: one file a kind.

A recipe's key takes one of them, told apart by ``kind``; which there are is asked when a value is
read, so that a kind declared after the recipe's class belongs to it too.
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
    """The keys of one kind, and what is known of it before anything is built."""

    kind: str = ""
    """Which; set by its declaration."""

    description: ClassVar[str] = ""


SectionT = TypeVar("SectionT", bound=KindSection)
KindT = TypeVar("KindT", bound=KindSection)


class Kinds(Generic[SectionT]):
    """The declared kinds, by name."""

    def __init__(self) -> None:
        self.kinds: dict[str, type[SectionT]] = {}

    def declare(self, kind: str, description: str) -> Callable[[type[KindT]], type[KindT]]:
        """A decorator: the class is the section of that kind.

        Args:
            kind: its name in recipes.
            description: a sentence.
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
    """The union of sections, told apart by ``kind``."""
    return Annotated[Union[sections], Field(discriminator="kind")]  # noqa: UP007


def discover(package: ModuleType) -> None:
    """Imports every file of a package, so that what it declares is known."""
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")


@dataclass(frozen=True)
class KindChoice:
    """A pydantic type that is asked for when a value is read.

    Args:
        sections: those that are declared by then.
        combine: makes the type of them.
        read: from what pydantic read to the value.
    """

    sections: Callable[[], tuple[type[KindSection], ...]]
    combine: Callable[..., Any]
    read: Callable[[Any], Any] = lambda read: read

    def validate(self, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, KindSection):
            return value
        adapter = _adapter(self.combine, self.sections())
        if info.mode == "json":  # JSON has no tuples and no paths, and strict Python wants them
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
    # Sections by kind, as they were given: what is not given is shared with another section.
    return {
        kind: section.model_dump(mode=info.mode, exclude_unset=True)
        for kind, section in value.items()
    }
