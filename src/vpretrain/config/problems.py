"""Explains what is wrong with a recipe: where, the value, what the key accepts, and the fix."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from vpretrain.system.errors import Problem

Key = tuple[str | int, ...]
Marks = dict[Key, str]  # where each key was given: "demo.yaml:12" or "override"

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "length at least",
    "maxLength": "length at most",
    "minItems": "items: at least",
    "maxItems": "items: at most",
}
_OUT_OF_RANGE = (
    "greater_than",
    "less_than",
    "multiple_of",
    "too_short",
    "too_long",
    "string_too",
    "finite_number",
)


class _Accepted:
    """What a recipe class accepts, read from its JSON schema.

    Sections, unions and bounds have a uniform representation there.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self.root = schema
        self._sections = schema.get("$defs", {})

    def options(self, node: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the alternatives of a node, with references and nested unions resolved."""
        if "$ref" in node:
            return self.options(self._sections[node["$ref"].rsplit("/", 1)[-1]])
        if branches := node.get("anyOf") or node.get("oneOf"):
            return [option for branch in branches for option in self.options(branch)]
        return [node]

    def child(self, node: dict[str, Any], part: str | int) -> dict[str, Any]:
        """Returns the schema node under a key or index; empty if unknown."""
        children = []
        for option in self.options(node):
            if isinstance(part, int):
                items = option.get("prefixItems", [])
                children.append(items[part] if part < len(items) else option.get("items"))
            else:
                named = option.get("properties", {}).get(part)
                children.append(named or option.get("additionalProperties"))
        children = [child for child in children if isinstance(child, dict)]
        return {"anyOf": children} if children else {}

    def keys(self, node: dict[str, Any]) -> list[str]:
        names = (name for option in self.options(node) for name in option.get("properties", {}))
        return list(dict.fromkeys(names))

    def variant(self, node: dict[str, Any], tag: str | int) -> dict[str, Any] | None:
        """Returns the section of a union that ``tag`` selects (its ``kind``); None if there is no
        such choice.
        """
        options = self.options(node)
        for option in options if len(options) > 1 else []:
            if any(tag in _choices(item) for item in option.get("properties", {}).values()):
                return option
        return None

    def places(self, node: dict[str, Any], name: str, above: Key = ()) -> Iterator[Key]:
        """Yields the full path of every key named ``name``."""
        for key in self.keys(node) if len(above) < 5 else []:
            if key == name:
                yield (*above, key)
            yield from self.places(self.child(node, key), name, (*above, key))

    def of_another_kind(self, key: Key) -> str:
        """Returns a message for a key that only other branches of the union have; empty if none has
        it.
        """
        *above, name = key
        options = self.options(self.at(tuple(above)))
        kinds = [
            str(kind)
            for option in options
            if name in option.get("properties", {})
            for kind in _choices(option["properties"].get("kind", {}))
        ]
        if len(options) < 2 or not kinds:
            return ""
        message = f"this is a key of the kind {' or '.join(kinds)}; remove it, or choose that kind"
        others = (f"{above[-1]}s", kinds[0], name)
        return message + (
            f"; for an arm that is compared, write {dotted(others)}" if self.at(others) else ""
        )

    def unknown_key(self, name: str, keys: list[str]) -> str:
        """Returns a message for a key that its section does not have."""
        elsewhere = [dotted(place) for place in self.places(self.root, name)]
        hint = nearest(name, keys) or (
            f"; did you mean {elsewhere[0]}?" if elsewhere else "; remove it"
        )
        return f"there is no such key{hint}"

    def at(self, key: Key) -> dict[str, Any]:
        """Returns the schema node at a key."""
        node = self.root
        for part in key:
            node = self.child(node, part)
        return node

    def opening_key(self, message: str) -> Key:
        """Returns the dotted key that a message begins with; empty if it does not begin with
        one.
        """
        opening = re.match(r"[a-z_]+(\.[a-z_]+)+", message)
        key: Key = tuple(opening.group().split(".")) if opening else ()
        return key if self.at(key) else ()

    def words(self, node: dict[str, Any]) -> str:
        """Describes in words what a node accepts."""
        options = self.options(node)
        if len(options) > 1:
            return " or ".join(dict.fromkeys(self.words(option) for option in options))
        node = options[0]
        if choices := _choices(node):
            return ("one of " if len(choices) > 1 else "") + ", ".join(map(str, choices))
        names = {
            "integer": "a whole number",
            "number": "a number",
            "string": "text",
            "boolean": "true or false",
        }
        kind = str(node.get("type", "any value"))
        text = "a path" if node.get("format") == "path" else names.get(kind, kind)
        if "properties" in node:
            text = "a section with the keys " + ", ".join(node["properties"])
        elif kind == "object":
            text = "a section of names, each with " + self.words(self.child(node, ""))
        elif kind == "array":
            text = "a list, each item " + self.words(self.child(node, 0))
        bounds = " and ".join(
            f"{word} {_plain(node[name])}" for name, word in _BOUNDS.items() if name in node
        )
        return f"{text} ({bounds})" if bounds else text


def explain(
    error: ValidationError, schema: type[BaseModel], data: dict[str, Any], marks: Marks
) -> list[Problem]:
    """Returns one problem for each key that pydantic rejected.

    A union reports an error for each branch; only the first is kept.

    An error from a section's own validator is shown at the section, or at the dotted recipe key
    that its message begins with (``evaluate.split is ...``).

    Args:
        error: the pydantic error.
        schema: the recipe class that raised it.
        data: the validated data.
        marks: where each key of ``data`` was given.
    """
    accepted = _Accepted(schema.model_json_schema())
    problems: dict[Key, Problem] = {}
    for item in error.errors(include_url=False):
        place = _Place.of(item, accepted, data)
        problem = place.problem(item, accepted, data, marks)
        problems.setdefault(place.key, problem)
    return list(problems.values())


@dataclass
class _Place:
    """The place in a recipe of a pydantic error.

    Args:
        key: of the recipe.
        section: schema node of the enclosing section.
        node: schema node of the key.
        value: the value given.
        absent: whether there is no value, or none worth showing.
    """

    key: Key
    section: dict[str, Any]
    node: dict[str, Any]
    value: Any
    absent: bool = False

    @classmethod
    def of(cls, item: Any, accepted: _Accepted, data: dict[str, Any]) -> _Place:
        kind, location = item["type"], item["loc"]
        without_kind = kind.startswith("union_tag")
        if without_kind:
            location = (*location, item["ctx"]["discriminator"].strip("'"))
        place = cls((), accepted.root, accepted.root, data)
        last = len(location) - 1 if kind == "missing" or without_kind else -1
        for depth, part in enumerate(location):
            # ``location`` also names the union branch that was tried, which is not a recipe key.
            value = place.value
            is_list = isinstance(value, list)
            items = value if isinstance(value, dict) else range(len(value)) if is_list else ()
            inside = part in items
            if (variant := accepted.variant(place.node, part)) is not None:
                place.node = variant
            elif inside or depth == last:
                place.section, place.node = place.node, accepted.child(place.node, part)
                place.absent, place.value = not inside, value[part] if inside else None
                place.key = (*place.key, part)
        return place

    def problem(
        self, item: Any, accepted: _Accepted, data: dict[str, Any], marks: Marks
    ) -> Problem:
        kind, words = item["type"], accepted.words(self.node)
        choices = [each for option in accepted.options(self.node) for each in _choices(option)]
        if kind == "extra_forbidden":
            name, keys = str(self.key[-1]), accepted.keys(self.section)
            words = "the keys " + ", ".join(keys)
            message = accepted.of_another_kind(self.key) or accepted.unknown_key(name, keys)
        elif self.absent:
            message = "this key is missing; add it"
        elif kind in ("value_error", "assertion_error"):
            message = str(item["ctx"]["error"])
            if named := accepted.opening_key(message):
                self.key, self.value = named, _at(data, named)
                # The accepted values depend on other keys; the message states them.
                self.absent, words = self.value is None, ""
            elif isinstance(self.value, dict):
                # The validator's message is enough; the section's contents would only hide it.
                self.absent, words = True, ""
        elif kind.startswith(_OUT_OF_RANGE):
            message = "this value is out of range"
        elif choices:
            hint = nearest(str(self.value), map(str, choices))
            message = f"this is not one of the choices{hint}"
        else:
            message = "this is not the kind of value that the key takes"
        value = "" if self.absent else shown(self.value)
        return Problem(place_of(self.key, marks), value, words, message)


def _at(data: Any, key: Key) -> Any:
    for part in key:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def _choices(node: dict[str, Any]) -> list[Any]:
    return node.get("enum") or ([node["const"]] if "const" in node else [])


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns a hint to append to a message, ``; did you mean NAME?``, or nothing if no name is
    close.
    """
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def dotted(key: Key) -> str:
    """Formats a key as ``data.stream.0.weight``."""
    return ".".join(map(str, key))


def place_of(key: Key, marks: Marks) -> str:
    """Formats a place as ``demo.yaml:12 value.meta_period``.

    A key that was not given is shown at the nearest enclosing section that was.
    """
    return f"{given_at(key, marks)} {dotted(key)}".strip()


def given_at(key: Key, marks: Marks) -> str:
    """Returns where a key, or else the nearest section around it, was given."""
    above = (key[:size] for size in range(len(key), -1, -1))
    return next((marks[part] for part in above if part in marks), "recipe")


def shown(value: object) -> str:
    """Formats a value as in YAML, truncated to one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else text[:97] + "..."
