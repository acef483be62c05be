"""Layers of a recipe: files that extend each other, and overrides on top."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vpretrain.config.problems import Key, Marks, dotted, place_of, shown
from vpretrain.config.section import look_up
from vpretrain.config.yaml_places import MOST_LETTERS, ending_comment, parse
from vpretrain.system.errors import Problem, UserError, user_error

Names = Mapping[str, Path]
Switch = Callable[[dict[str, Any], Mapping[str, Any], Marks], None]
"""Prepares a recipe's data for the next layer, see :meth:`vpretrain.config.arms.Arms.switch`."""


def find(source: str | Path, where: str, names: Names, beside: Path = Path()) -> Path:
    """Returns the file of a recipe.

    Args:
        source: a name (names take precedence), or a path.
        where: where it is named, for the message.
        names: of the packaged recipes.
        beside: folder that a relative path starts from.

    Raises:
        UserError: there is no such file.
    """
    path, text = beside / source, str(source)
    if text in names:
        return names[text]
    try:
        look_up(path)
    except ValueError as error:
        accepted = "the path of a YAML file"
        raise user_error(where, str(error), value=shown(text), accepted=accepted) from None
    if path.is_file():
        return path
    if path.is_dir():
        inside = ", ".join(map(str, sorted(path.glob("*.yaml")))) or "it holds no *.yaml"
        message = "this is a folder; name a recipe in it"
        raise user_error(where, message, value=text, accepted=f"a file: {inside}")
    beside_it = {file.stem: str(file) for file in sorted(path.parent.glob("*.yaml"))}
    near = beside_it | {name: name for name in names}
    close = difflib.get_close_matches(path.name.removesuffix(".yaml"), near, n=1)
    hint = f"; did you mean {near[close[0]]}?" if close else ""
    if path.parts[:1] == ("recipes",) and not path.parent.is_dir():
        hint = "; recipes/ is a folder of the repository, not of the package"
    if "=" in text:
        hint = "; the recipe comes first, overrides come after it"
    listed = ", ".join(names) or "(there are none)"
    accepted = f"the path of a YAML file, or a packaged recipe: {listed}"
    raise user_error(where, f"there is no such recipe{hint}", value=text, accepted=accepted)


def compose(
    path: Path,
    problems: list[Problem],
    switch: Switch,
    names: Names,
    above: tuple[Path, ...] = (),
) -> tuple[dict[str, Any], Marks]:
    """Returns the file's mapping merged over the one it extends.

    Duplicate keys are added to ``problems``.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_LETTERS + 1)  # one too many, so that the parser rejects it
    except (OSError, UnicodeDecodeError) as error:
        message = f"this file cannot be read: {error}"
        raise user_error(str(path), message, accepted="a text file in UTF-8") from None
    value, marks, twice = parse(text, lambda line: f"{path}:{line}")
    problems += twice
    if not isinstance(value, dict):
        message = "a recipe is a mapping of keys to values"
        raise user_error(str(path), message, value=shown(value), accepted="lines such as `seed: 0`")
    marks[()] = str(path)
    if "extends" not in value:
        return value, marks
    base, where = value.pop("extends"), place_of(("extends",), marks)
    if not isinstance(base, str):
        message, accepted = "a recipe extends one other", "a packaged name or a path"
        raise user_error(where, message, value=shown(base), accepted=accepted)
    parent, chain = find(base, where, names, path.parent), (*above, path.resolve())
    if parent.resolve() in chain:
        links = (*chain[chain.index(parent.resolve()) :], parent)
        circle = " -> ".join(file.name for file in links)
        message = "these recipes extend each other in a circle; remove one of the links"
        raise user_error(where, message, value=circle)
    data, inherited = compose(parent, problems, switch, names, chain)
    switch(data, value, inherited)
    return _merge(data, value, inherited), inherited | marks


def _merge(
    base: dict[str, Any], over: dict[str, Any], inherited: Marks, key: Key = ()
) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        inner, former = (*key, name), merged.get(name)
        if isinstance(former, dict) and isinstance(value, dict) and _are_merged(former, value, key):
            merged[name] = _merge(former, value, inherited, inner)
        else:
            merged[name] = value
            _forget(inherited, inner)
    return merged


def _are_merged(former: dict[str, Any], value: dict[str, Any], above: Key) -> bool:
    """Returns whether keys of ``former`` that ``value`` does not give stay.

    A section of the recipe keeps them under another ``kind`` (a learner its optimizer). Within a
    section, rows or a task of another kind are another source, of which nothing stays.
    """
    return not above or "kind" not in former or value.get("kind", former["kind"]) == former["kind"]


def _forget(marks: Marks, key: Key) -> None:
    for stale in [mark for mark in marks if mark[: len(key)] == key]:
        del marks[stale]


def apply(override: str, data: dict[str, Any], marks: Marks) -> None:
    """Writes one ``dotted.key=value`` into ``data``, and marks it as an override."""
    name, equals, text = override.partition("=")
    parts, where = name.strip().split("."), f"override {override}"
    if not equals or not all(parts):
        message = "an override is written key=value, with dots between the parts of the key"
        raise user_error(where, message, accepted="for example budget.steps=100")
    value, _, twice = parse(text, lambda _: where)
    if twice:
        raise UserError(*twice)
    if comment := ending_comment(text):
        message = "YAML reads what follows a # as a comment; put the whole value in quotes"
        quoted = shlex.quote(f"{name.strip()}={json.dumps(text.strip(), ensure_ascii=False)}")
        raise user_error(where, message, value=comment, accepted=quoted)
    place: Any = data
    key: Key = ()
    for depth, part in enumerate(parts):
        step: str | int = part
        if isinstance(place, list):
            if not (part.isdecimal() and int(part) < len(place)):
                indices = f"an index from 0 to {len(place) - 1}"
                accepted = indices if place else "no index: the list is empty"
                message = f"{dotted(key)} is a list, and {part} is no item of it"
                raise user_error(where, message, accepted=accepted)
            step = int(part)
        elif not isinstance(place, dict):
            message = f"{dotted(key)} is a single value, without keys"
            raise user_error(where, message, value=shown(place))
        key = (*key, step)
        if depth == len(parts) - 1:
            place[step] = value
        elif isinstance(place, dict) and place.get(step) is None:
            place[step] = {}
            marks[key] = "override"
        place = place[step]
    _forget(marks, key)
    marks[key] = "override"
