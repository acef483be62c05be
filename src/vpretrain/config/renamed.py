"""Recipe keys that were renamed."""

from __future__ import annotations

from typing import Any

from vpretrain.config.problems import Marks, place_of, shown
from vpretrain.system.errors import Problem

RENAMED = {
    "says": "description",
    "designer.value_unit": "value.unit",
    "designer.carried_from": "designer.init_from",
    "learner.warmup_share": "learner.warmup_fraction",
    "learner.final_share": "learner.final_fraction",
    "value.burn_in_steps": "value.settle_steps",  # the paper's burn-in is value.start_step
}
"""New dotted key for each old one."""


def renamed(data: dict[str, Any], marks: Marks) -> list[Problem]:
    """Returns one problem for every old key in a recipe, and moves its value to the new key.

    The value is then validated there, and nothing else is reported about the old key.

    Args:
        data: a recipe before validation; modified in place.
        marks: where each key was given; modified in place.
    """
    problems = []
    for old, new in RENAMED.items():
        *above, name = old.split(".")
        section = _section(data, above)
        if section is None or name not in section:
            continue
        key, value = (*above, name), section.pop(name)
        problems.append(
            Problem(place_of(key, marks), shown(value), "", f"this key is now {new}; rename it")
        )
        *above, name = new.split(".")
        section = _section(data, above)
        if section is not None and name not in section:
            section[name] = value
            marks[(*above, name)] = marks.get(key, "recipe")
    return problems


def _section(data: dict[str, Any], key: list[str]) -> dict[str, Any] | None:
    place: Any = data
    for part in key:
        place = place.get(part) if isinstance(place, dict) else None
    return place if isinstance(place, dict) else None
