"""How rows of a user's own files are worded as prompts: as the rows of a run, or plainly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpretrain.language.data.columns import Columns
from vpretrain.language.data.reading import columns_of
from vpretrain.language.data.rows import SEPARATOR
from vpretrain.language.recipe.rows import Table


@dataclass(frozen=True)
class Wording:
    """How a row of a file becomes prompt and solution.

    Args:
        separator: ``data.separator``.
        instruction: ``data.instruction``.
        parse_special_tokens: ``data.parse_special_tokens``.
        max_tokens: ``data.feedback.max_tokens``, the length at which rows are cut; None for no
            limit.
        table: the columns of the run's evaluated rows; None if they have no prompt in columns.
    """

    separator: str = SEPARATOR
    instruction: str | None = None
    parse_special_tokens: bool = False
    max_tokens: int | None = None
    table: Table | None = None

    def columns(self, prompt: str, solution: str) -> Columns:
        """The columns of a file's rows: those of the table, whose columns ``prompt`` and
        ``solution`` are named here; those of a template, format or chat keep their names."""
        table, named = self.table, {"prompt": prompt, "solution": solution}
        if table is None:
            table = Table(prompt=prompt, solution=solution)
        here = {key: name for key, name in named.items() if getattr(table, key) is not None}
        table = table.model_copy(update=here)
        return columns_of(
            table, "", "--tasks", separator=self.separator, instruction=self.instruction
        )


PLAIN = Wording()
"""Prompt and solution, joined by the default separator."""


def wording_of(recipe: Mapping[str, Any]) -> Wording:
    """The wording of ``evaluate.split`` in a run's ``recipe.yaml``; the default for a recipe of
    another modality."""
    if recipe.get("modality") != "language":
        return PLAIN
    data = recipe.get("data") or {}
    split = (recipe.get("evaluate") or {}).get("split", "test")
    rows = (data.get("evaluation") or {}).get(split) or {}
    if rows.get("kind") == "held_out":
        rows = next(each["rows"] for each in data["stream"] if each["name"] == rows["source"])
    keys = ("prompt", "template", "solution", "format", "columns")
    named = {key: rows[key] for key in keys if rows.get(key) is not None}
    table = Table.model_validate_json(json.dumps(named)) if named else None
    own = ("separator", "instruction", "parse_special_tokens")
    longest = (data.get("feedback") or {}).get("max_tokens")
    given = {key: data[key] for key in own if key in data}
    return Wording(**given, max_tokens=longest, table=table)
