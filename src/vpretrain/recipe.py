"""Recipes: every value of a run, read from YAML, checked as a whole, and written back as it was resolved.

A modality subclasses :class:`Recipe` (and any section); this module knows none of them. Everything that
a person got wrong is reported together, each problem with the ``file:line`` of its key and what that accepts.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from vpretrain.errors import Problem, UserError, user_error

Key = tuple[str | int, ...]
Marks = dict[Key, str]  # where each key was given: "demo.yaml:12", or "override"
Schemas = Mapping[str, Callable[[], "type[Recipe]"]]


class Section(BaseModel):
    """A group of keys: unknown keys are refused, values are never coerced, numbers are finite.

    A whole number is a number. Python code that builds a section gives the exact types (a tuple, no list;
    a Path, no text); :func:`load` reads lists as tuples and text as paths.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Budget(Section):
    """When a run ends: at the first of the given limits that is used up. At least one is given."""

    steps: PositiveInt | None = None
    """Learner steps."""
    tokens: PositiveInt | None = None
    """Tokens (vision: images) of the stream, over all ranks."""
    seconds: PositiveFloat | None = None
    """Seconds of training; evaluation is not charged."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.steps is None and self.tokens is None and self.seconds is None:
            raise ValueError(
                "a run needs an end: give at least one of steps, tokens, seconds (the first used up ends it)"
            )
        return self


class Value(Section):
    """How the value of a task is measured (eq. 9, 26, 35) and how far it is trusted."""

    alignment: Literal["dot", "cosine", "lower_bound", "optimizer_aware"] = "optimizer_aware"
    """What compares g_pre and g_down; ``optimizer_aware``: u = P g_down, P of the learner's AdamW, eq. 35."""
    estimator: Literal["central_difference", "forward_mode", "double_backward"] = "central_difference"
    """How the loss is differentiated along u; ``vpretrain doctor RECIPE`` says which of them work here."""
    meta_period: PositiveInt = 8
    """Learner steps from one meta step to the next."""
    burn_in_steps: NonNegativeInt = 0
    """Steps at learning rate 0 before the first learner step, in every arm: AdamW's moments (which P reads), the designer and
    its reliability settle. They count as seconds, not as steps or tokens."""
    preconditioner_floor: PositiveFloat = 0.1
    """Floor on sqrt(v_hat) in P, as a share of the root mean square of sqrt(v_hat). Rows of rare tokens
    (embeddings, head) have a tiny v_hat; without a floor they dominate u = P g_down."""
    smoothness: NonNegativeFloat = 1.0
    """L of Prop. 2.1 (bounds the feedback loss's curvature); only ``alignment: lower_bound`` reads it."""
    guard_window: NonNegativeInt = 16
    """Meta steps over which a mean gain below zero closes the gate; 0 switches this guard off."""
    shrink: bool = True
    """Whether token values are shrunk by the agreement between the two halves of the feedback batch, so that
    noise does not open the gate as signal does."""


class Checkpoint(Section):
    """When the state of the run is saved beside the final one."""

    every: NonNegativeInt = 0
    """Learner steps between two checkpoints; 0: only the final one."""


class Evaluate(Section):
    """When the learner is evaluated beside step 0 and the end."""

    every: NonNegativeInt = 0
    """Learner steps between two evaluations; 0: only before the first step and after the last."""


class Recipe(Section):
    """What every recipe holds; a modality adds data, learner and designer, and may subclass the sections."""

    modality: str
    """Which modality reads this recipe."""
    says: str
    """One sentence for ``vpretrain recipes``."""
    seed: NonNegativeInt = 0
    """Seeds everything random in the run."""
    arm: str
    """The way of steering: one of the modality's arms."""
    threads: PositiveInt | None = None
    """CPU threads; null leaves torch's own choice."""
    value: Value = Value()
    budget: Budget
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()


def load(source: str | Path, overrides: Sequence[str] = (), *, schemas: Schemas) -> Recipe:
    """Read, extend, override and check a recipe.

    Args:
        source: a packaged name (these win), or the path of a YAML file. A file may say ``extends: OTHER`` (a
            packaged name, or a path relative to it): mappings are merged deeply, lists and scalars replaced.
        overrides: ``dotted.key=value`` each; the value is read as YAML and replaces what was there, a number
            among the keys addresses an item of a list, and of two overrides of one key the later wins.
        schemas: for each modality's name, a function that imports and returns its recipe class. It is called
            only for a recipe that names it, so that no recipe needs another modality's libraries.

    Returns:
        A frozen instance of the modality's class.

    Raises:
        UserError: with every problem that was found in the files, the overrides and the values.
    """
    problems: list[Problem] = []
    data: dict[str, Any] = {}
    marks: Marks = {}
    readable = True
    try:
        data, marks = _compose(_find(source, f"recipe {source}", Path()), problems)
    except UserError as error:
        readable = False
        problems += error.problems
    for override in overrides:
        try:
            _apply(override, data, marks)
        except UserError as error:
            problems += error.problems
    if readable:
        modality = data.get("modality")
        if isinstance(modality, str) and modality in schemas:
            schema = schemas[modality]()
            try:
                # Through JSON, because strict JSON still reads lists as tuples and text as paths.
                recipe = schema.model_validate_json(json.dumps(data))
            except ValidationError as error:
                problems += _explain(error, _Accepted(schema.model_json_schema()), data, marks)
        else:
            given = "modality" in data
            hint = _nearest(str(modality), schemas) if given else "; add it"
            message = f"there is no such modality{hint}" if given else f"this key is missing{hint}"
            where = _where(("modality",), marks)
            problems.append(
                Problem(where, _shown(modality) if given else "", "one of " + ", ".join(schemas), message)
            )
    if problems:
        raise UserError(*problems)
    return recipe


def dump(recipe: Recipe) -> str:
    """YAML of every resolved value, defaults included; :func:`load` reads it back to an equal recipe."""
    return yaml.dump(
        recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )


def packaged() -> dict[str, Path]:
    """The recipes that come with the package, by name (the file's name without ``.yaml``), sorted."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def listing(folder: Path | None = None) -> list[dict[str, str]]:
    """``{name, modality, says}`` of the packaged recipes, then of all below ``folder``; ``load`` takes names.

    A file without ``modality`` or ``says`` is there to be extended and is left out. One that cannot be read
    is listed and says why (its modality is empty), so that it hides no other.
    """
    found = list(packaged().items())
    found += [(str(path), path) for path in sorted(folder.rglob("*.yaml"))] if folder else []
    rows = []
    for name, path in found:
        try:
            data, _ = _compose(path, [])
        except UserError as error:
            data = {"modality": "", "says": "cannot be read: " + str(error).splitlines()[0]}
        if "modality" in data and "says" in data:
            rows.append({"name": name, "modality": str(data["modality"]), "says": str(data["says"])})
    return rows


# ---- YAML in, YAML out


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: ``5e-5`` is a number; ``no``, ``010`` and ``1:30`` are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        number = super().construct_yaml_float(node)
        # So that ``budget.tokens=1e6`` is the whole number it looks like; a number's key takes it too.
        return int(number) if "." not in node.value and number.is_integer() else number


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or :class:`_Loader` would read as something else."""


_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?((\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.inf)|\.nan"
for _name, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", "~|null|Null|NULL|", [*"~nN", ""]),
    ("int", "[-+]?(0|[1-9][0-9_]*)", [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+.0123456789"]),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
_Dumper.add_implicit_resolver(_TAG + "float", re.compile(rf"(?:{_FLOAT})\Z"), [*"-+.0123456789"])
_Loader.add_constructor(_TAG + "float", _Loader.construct_yaml_float)


def _parse(text: str, at: Callable[[int], str]) -> tuple[Any, Marks, list[Problem]]:
    """The value, where each key stands, and the keys given twice; ``at(line)`` is how a place is shown."""
    marks: Marks = {}
    problems: list[Problem] = []

    def visit(node: yaml.Node, key: Key, above: tuple[int, ...]) -> None:
        if id(node) in above:
            raise yaml.constructor.ConstructorError(None, None, "an anchor contains itself", node.start_mark)
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                marks[(*key, index)] = at(child.start_mark.line + 1)
                visit(child, (*key, index), above)
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for name, child in node.value:
                if not isinstance(name, yaml.ScalarNode) or name.tag == _TAG + "merge":
                    continue
                name.tag = _TAG + "str"  # every key is text, whatever YAML would make of it as a value
                inner, line = (*key, name.value), name.start_mark.line + 1
                if name.value in first:
                    message = f"this key was given on line {first[name.value]} already; keep one of the two"
                    problems.append(Problem(f"{at(line)} {_dotted(inner)}", "", "", message))
                first[name.value] = line
                marks[inner] = at(line)
                visit(child, inner, above)

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, marks, problems
        visit(node, (), ())
        # By way of JSON, so that an anchor's uses no longer share one object: an override changes one place.
        return json.loads(json.dumps(loader.construct_document(node), default=str)), marks, problems
    except yaml.YAMLError as error:
        mark, lines = getattr(error, "problem_mark", None), text.splitlines() or [""]
        line = min(mark.line, len(lines) - 1) if mark else 0
        shown = lines[line].strip() if mark else ""
        said = [getattr(error, part, None) for part in ("context", "problem")]
        reason = ", ".join(filter(None, said)) or str(error)
        message = f"this is not valid YAML: {reason}; indent with spaces, and quote text that holds : # or @"
        raise user_error(at(line + 1), message, value=shown) from None


def _find(source: str | Path, where: str, beside: Path) -> Path:
    known, path = packaged(), beside / source
    if str(source) in known:
        return known[str(source)]
    if path.is_file():
        return path
    names = {file.stem: str(file) for file in sorted(path.parent.glob("*.yaml"))} | {
        name: name for name in known
    }
    close = difflib.get_close_matches(path.name.removesuffix(".yaml"), names, n=1)
    hint = f"; did you mean {names[close[0]]}?" if close else ""
    accepted = "the path of a YAML file, or a packaged recipe: " + (", ".join(known) or "(there are none)")
    raise user_error(where, f"there is no such recipe{hint}", value=str(source), accepted=accepted)


def _compose(
    path: Path, problems: list[Problem], above: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], Marks]:
    """The file's mapping merged over what it extends; twice-given keys are added to ``problems``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise user_error(
            str(path), f"this file cannot be read: {error}", accepted="a text file in UTF-8"
        ) from None
    value, marks, found = _parse(text, lambda line: f"{path}:{line}")
    problems += found
    if not isinstance(value, dict):
        message = "a recipe is a mapping of keys to values"
        raise user_error(str(path), message, value=_shown(value), accepted="lines such as `seed: 0`")
    marks[()] = str(path)
    if "extends" not in value:
        return value, marks
    base, where = value.pop("extends"), _where(("extends",), marks)
    if not isinstance(base, str):
        raise user_error(
            where, "a recipe extends one other", value=_shown(base), accepted="a packaged name or a path"
        )
    parent, chain = _find(base, where, path.parent), (*above, path.resolve())
    if parent.resolve() in chain:
        circle = " -> ".join(file.name for file in (*chain[chain.index(parent.resolve()) :], parent))
        raise user_error(
            where, "these recipes extend each other in a circle; remove one of the links", value=circle
        )
    data, inherited = _compose(parent, problems, chain)
    return _merge(data, value), inherited | marks


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _apply(override: str, data: dict[str, Any], marks: Marks) -> None:
    """Write one ``dotted.key=value`` into ``data``, and into ``marks`` that it came from there."""
    name, equals, written = override.partition("=")
    parts, where = name.strip().split("."), f"override {override}"
    if not equals or not all(parts):
        message = "an override is written key=value, with dots between the parts of the key"
        raise user_error(where, message, accepted="for example budget.steps=100")
    value, _, twice = _parse(written, lambda _: where)
    if twice:
        raise UserError(*twice)
    place: Any = data
    key: Key = ()
    for depth, part in enumerate(parts):
        step: str | int = part
        if isinstance(place, list):
            if not (part.isdecimal() and int(part) < len(place)):
                accepted = f"an index from 0 to {len(place) - 1}" if place else "no index: the list is empty"
                raise user_error(
                    where, f"{_dotted(key)} is a list, and {part} is no item of it", accepted=accepted
                )
            step = int(part)
        elif not isinstance(place, dict):
            raise user_error(where, f"{_dotted(key)} is a single value, without keys", value=_shown(place))
        key = (*key, step)
        if depth == len(parts) - 1:
            place[step] = value
        elif isinstance(place, dict) and place.get(step) is None:
            place[step] = {}
            marks[key] = "override"
        place = place[step]
    for stale in [mark for mark in marks if mark[: len(key)] == key]:
        del marks[stale]
    marks[key] = "override"


# ---- what is wrong, in words

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
    """What a recipe class accepts, asked of its JSON schema: sections, unions and bounds look alike there."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.root = schema
        self._sections = schema.get("$defs", {})

    def options(self, node: dict[str, Any]) -> list[dict[str, Any]]:
        """The alternatives of a node, references and nested unions resolved."""
        if "$ref" in node:
            return self.options(self._sections[node["$ref"].rsplit("/", 1)[-1]])
        branches = node.get("anyOf") or node.get("oneOf")
        return [option for branch in branches for option in self.options(branch)] if branches else [node]

    def child(self, node: dict[str, Any], part: str | int) -> dict[str, Any]:
        """What a node accepts under one key or index; an empty node where that is not known."""
        found = []
        for option in self.options(node):
            if isinstance(part, int):
                items = option.get("prefixItems", [])
                found.append(items[part] if part < len(items) else option.get("items"))
            else:
                found.append(option.get("properties", {}).get(part) or option.get("additionalProperties"))
        found = [item for item in found if isinstance(item, dict)]
        return {"anyOf": found} if found else {}

    def keys(self, node: dict[str, Any]) -> list[str]:
        return list(
            dict.fromkeys(name for option in self.options(node) for name in option.get("properties", {}))
        )

    def variant(self, node: dict[str, Any], tag: str | int) -> dict[str, Any] | None:
        """The section of a union that ``tag`` selects (its ``kind``), None where there is no such choice."""
        options = self.options(node)
        for option in options if len(options) > 1 else []:
            if any(tag in _choices(item) for item in option.get("properties", {}).values()):
                return option
        return None

    def places(self, node: dict[str, Any], name: str, above: Key = ()) -> Iterator[Key]:
        """Every place of a key of that name."""
        for key in self.keys(node) if len(above) < 5 else []:
            if key == name:
                yield (*above, key)
            yield from self.places(self.child(node, key), name, (*above, key))

    def words(self, node: dict[str, Any]) -> str:
        """What a node accepts, for a person."""
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
        bounds = " and ".join(f"{word} {node[name]:g}" for name, word in _BOUNDS.items() if name in node)
        return f"{text} ({bounds})" if bounds else text


def _explain(
    error: ValidationError, accepted: _Accepted, data: dict[str, Any], marks: Marks
) -> list[Problem]:
    """One problem for each key that pydantic refused (a union refuses once for each of its branches)."""
    problems: dict[Key, Problem] = {}
    for item in error.errors(include_url=False):
        kind, location = item["type"], item["loc"]
        if kind.startswith("union_tag"):
            location = (*location, item["ctx"]["discriminator"].strip("'"))
        key: Key = ()
        section = node = accepted.root
        value: Any = data
        absent, last = False, len(location) - 1 if kind == "missing" or kind.startswith("union_tag") else -1
        for depth, part in enumerate(location):
            # ``location`` also names the branch of a union that was tried: no place in the recipe.
            items = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            inside = part in items
            if (variant := accepted.variant(node, part)) is not None:
                node = variant
            elif inside or depth == last:
                section, node = node, accepted.child(node, part)
                absent, value, key = not inside, value[part] if inside else None, (*key, part)
        words = accepted.words(node)
        if kind == "extra_forbidden":
            name, keys = str(key[-1]), accepted.keys(section)
            elsewhere = [_dotted(place) for place in accepted.places(accepted.root, name)]
            hint = _nearest(name, keys) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "; remove it")
            message, words = f"there is no such key{hint}", "the keys " + ", ".join(keys)
        elif absent:
            message = "this key is missing; add it"
        elif kind in ("value_error", "assertion_error"):
            message = str(item["ctx"]["error"])
            if isinstance(value, dict):
                # A section's own check says what is wrong; echoing the whole section would only bury it.
                absent, words = True, ""
        elif kind.startswith(_OUT_OF_RANGE):
            message = "this value is out of range"
        elif choices := [choice for option in accepted.options(node) for choice in _choices(option)]:
            message = f"this is not one of the choices{_nearest(str(value), map(str, choices))}"
        else:
            message = "this is not the kind of value that the key takes"
        problems.setdefault(key, Problem(_where(key, marks), "" if absent else _shown(value), words, message))
    return list(problems.values())


def _choices(node: dict[str, Any]) -> list[Any]:
    return node.get("enum") or ([node["const"]] if "const" in node else [])


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def _where(key: Key, marks: Marks) -> str:
    """``demo.yaml:12 value.meta_period``; a key that was not given is shown at the section that lacks it."""
    near = next((marks[key[:size]] for size in range(len(key), -1, -1) if key[:size] in marks), "recipe")
    return f"{near} {_dotted(key)}".strip()


def _shown(value: object) -> str:
    """A value as one would write it in YAML, shortened to a line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else text[:97] + "..."
