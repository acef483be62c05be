"""Rows of files of any kind, as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vpretrain.system.errors import Problem, UserError, collecting, renamed
from vpretrain.system.locations import Place, Remote, check_file, files, is_url
from vpretrain.system.tables import (
    Unit,
    check_length,
    documents,
    is_list,
    kind_by_name,
    numbered,
    readable,
    records,
)


def places(patterns: Sequence[str], where: str) -> list[Place]:
    """The files that match paths, globs (with braces, as in recipes) and URLs, in order and without
    repetition. ``where`` is the flag they were given to.

    Raises:
        UserError: with all patterns that match no file.
    """
    paths: dict[Place, None] = {}
    problems: list[Problem] = []
    for pattern in patterns:
        place = Remote(pattern) if is_url(pattern) else Path(pattern).expanduser()
        with collecting(problems), renamed({f"{where}.path": where}):
            for path in files(place, where):
                check_file(path, where)
                paths[path] = None
    if problems:
        raise UserError(*problems)
    return list(paths)


def lines(path: Place, document: Unit = "line") -> Iterator[tuple[int, bytes]]:
    """Yields every row as a line of JSON, with its number in the file from 1; skips blank lines.

    Args:
        path: a file.
        document: unit of plain text that forms a row.

    Raises:
        UserError: the file or a row of it cannot be read. Lines of JSON Lines are not parsed here
            (see :func:`vpretrain.system.tables.parsed`).
    """
    kind = kind_by_name(path) or "jsonl"
    with readable(path, kind, str(path)):
        if kind == "jsonl" and not is_list(path):
            for number, line in numbered(path):
                if line.strip():
                    yield number, line if line.endswith(b"\n") else line + b"\n"
            return
        for number, row in (
            documents(path, document) if kind == "text" else records(path, kind, list)
        ):
            if isinstance(row, Problem):
                raise UserError(row)
            line = _as_json({"text": row} if isinstance(row, str) else row)
            check_length(line, f"{path}:{number}")
            yield number, line


def _as_json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"


def text_of(value: Any) -> str:
    """All strings in a cell or row, nested ones too (messages, choices), joined by line breaks."""
    texts, pending = [], [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            pending.extend(reversed(part.values()))
        elif isinstance(part, list):
            pending.extend(reversed(part))
    return "\n".join(texts)
