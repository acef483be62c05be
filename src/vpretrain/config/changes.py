"""Differences between a recipe and the one that a folder was begun with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vpretrain.config.recipe import Recipe
from vpretrain.config.yaml_places import parse
from vpretrain.system.errors import Problem

FREE = ("description", "checkpoint", "faults", "learner.shard", "track")
"""Parts of a recipe that may change between resumptions, because they do not affect what is
trained.
"""


def changes(
    folder: Path, recipe: Recipe, fix: str, *, beside: Mapping[str, Any] | None = None
) -> list[Problem]:
    """Returns one problem for every key that differs from the folder's ``recipe.yaml``.

    Empty if there is no such file.

    A key that is newer than the folder has its default there.

    Args:
        folder: of a run or a comparison.
        recipe: the recipe to resume it with.
        fix: advice for the message.
        beside: sections that the file has beside the recipe's (``sweep``), as they are now.

    Returns:
        The problems; a single one if this version cannot read the folder's recipe.

    Raises:
        UserError: ``recipe.yaml`` is not YAML.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        return []
    tree = parse(path.read_text(encoding="utf-8", errors="replace"), lambda line: f"{path}:{line}")[
        0
    ]
    others = {name: tree.pop(name, None) for name in beside or {} if isinstance(tree, dict)}
    try:
        tree = type(recipe).model_validate_json(json.dumps(tree)).model_dump(mode="json")
    except ValidationError:
        return [_unreadable(path, fix)]
    before = _flat({**tree, **others})
    now = _flat({**recipe.model_dump(mode="json"), **(beside or {})})
    message = f"{folder} was begun with another value: {fix}"
    return [
        Problem(key, repr(now.get(key)), repr(before.get(key)), message)
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        and not f"{key}.".startswith(tuple(f"{free}." for free in FREE))
    ]


def _unreadable(path: Path, fix: str) -> Problem:
    message = (
        "this folder's recipe has keys or values that this version does not take: an earlier "
        f"version of vpretrain wrote it, or it was edited. {fix}"
    )
    return Problem(str(path), "", "a recipe that `vpretrain check` accepts", message)


def _flat(tree: Any, at: str = "") -> dict[str, Any]:
    """Returns leaves by dotted key; an empty list or mapping is a leaf."""
    if not tree or not isinstance(tree, (dict, list)):
        return {at: tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        key: leaf
        for name, item in pairs
        for key, leaf in _flat(item, f"{at}.{name}" if at else str(name)).items()
    }
