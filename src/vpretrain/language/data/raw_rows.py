"""Rows of files, whatever their kind, as lines of JSON."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from vpretrain.system.errors import Problem, UserError, collecting
from vpretrain.system.located import Place, Remote, files, is_named_file, is_url, spelled
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
    """The files that names, globs (with braces, as in recipes) and URLs of the flag ``where`` stand
    for, in their order, each once.

    Raises:
        UserError: with all names that stand for no file.
    """
    paths: dict[Place, None] = {}
    problems: list[Problem] = []
    for pattern in patterns:
        if is_url(pattern):
            with collecting(problems):
                paths |= dict.fromkeys(files(Remote(pattern), where))
            continue
        path = Path(pattern).expanduser()
        if path.is_dir():
            message = "this is a folder: name files in it, or a glob"
            accepted = f"a file, or say '{path / '*.jsonl'}'"
            problems.append(Problem(where, pattern, accepted, message))
        elif path.exists():
            paths[path] = None
        else:
            found = (sorted(glob.glob(one, recursive=True)) for one in spelled(str(path)))
            matches = [
                name for name in map(Path, chain.from_iterable(found)) if is_named_file(name)
            ]
            paths |= dict.fromkeys(matches)
            if not matches:
                message = f"no such file, and no file matches (paths start at {Path.cwd()})"
                accepted = "JSON Lines, CSV, parquet, Arrow or plain text, or a glob of such"
                problems.append(Problem(where, pattern, accepted, message))
    if problems:
        raise UserError(*problems)
    return list(paths)


def lines(path: Place, document: Unit = "line") -> Iterator[tuple[int, bytes]]:
    """Every row as a line of JSON, with its number in the file from 1; blank lines are none.

    Args:
        path: of a file.
        document: what a row of plain text is.

    Raises:
        UserError: the file cannot be read, or a row of it; what is wrong with a line of JSON is
            left to :func:`parsed`.
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
    """All text in a cell or row, in lists and objects too (messages of a conversation, choices)."""
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
