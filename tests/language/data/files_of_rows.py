"""Files of rows, and what is read from them."""

from __future__ import annotations

import json
from pathlib import Path

from vpretrain.language.data import sources
from vpretrain.language.data.columns import Columns
from vpretrain.language.data.rows import Row
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.tables import kind_by_name

WHERE = "data.stream.0.rows"


def columns(**named: str) -> Columns:
    return Columns("s", WHERE, **(named or {"text": "text"}))


def rows_of(path: Path, **named: str) -> list[Row | Problem]:
    return list(sources.table(path, kind_by_name(path) or "jsonl", columns(**named)))


def the_problem(path: Path, **named: str) -> Problem:
    """Of a file that is wrong as a whole, or in its one bad row."""
    try:
        (problem,) = (result for result in rows_of(path, **named) if isinstance(result, Problem))
    except UserError as error:
        (problem,) = error.problems
    return problem


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
