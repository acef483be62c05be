"""Rows of files as lines of JSON, before anybody has named their columns: JSON Lines, parquet,
plain text.
"""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from vpretrain.language.data.columns import shortened
from vpretrain.system.errors import Problem, UserError, user_error

_TEXT = (".txt", ".text", ".md")
_PARQUET_ROWS = 1_000  # held at once


def files(patterns: Sequence[str], where: str) -> list[Path]:
    """The files that names and globs stand for, in their order, each once.

    Args:
        patterns: as on the command line.
        where: the flag or argument, for messages.

    Raises:
        UserError: with all names that stand for no file.
    """
    found: dict[Path, None] = {}
    problems: list[Problem] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            message = "this is a folder: name files in it, or a glob"
            problems.append(
                Problem(where, pattern, f"a file, or say '{path / '*.jsonl'}'", message)
            )
        elif path.exists():
            found[path] = None
        else:
            globbed = [
                Path(name)
                for name in sorted(glob.glob(str(path), recursive=True))
                if Path(name).is_file()
            ]
            found |= dict.fromkeys(globbed)
            if not globbed:
                message = f"no such file, and no file matches (paths start at {Path.cwd()})"
                problems.append(
                    Problem(
                        where,
                        pattern,
                        "JSON Lines, parquet or plain text, or a glob of such",
                        message,
                    )
                )
    if problems:
        raise UserError(*problems)
    return list(found)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every row as a line of JSON, with its line number (parquet: row number) from 1; blank lines
    are none.

    Raises:
        UserError: the file cannot be read, or a line of a plain text is not UTF-8.
    """
    name = path.name.removesuffix(".gz")
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not line.strip():
                    continue
                if name.endswith(_TEXT):
                    line = _as_json({"text": _decoded(line, f"{path}:{number}").rstrip("\r\n")})
                yield number, line if line.endswith(b"\n") else line + b"\n"
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pyarrow.ArrowException) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise user_error(
            str(path), f"this file cannot be read: {why}", accepted="a readable, whole file"
        ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, _as_json(row)


def _as_json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = (
            f"byte {error.start + 1} of this line is not UTF-8: convert the file (iconv -t UTF-8)"
        )
        raise user_error(
            where, message, value=f"0x{line[error.start]:02x}", accepted="UTF-8"
        ) from None


def parsed(line: bytes, where: str) -> dict[str, Any] | Problem:
    """The row of a line, or what is wrong with it."""
    shown = shortened(line.decode("utf-8", "replace").strip())
    try:
        row = json.loads(_decoded(line, where))
    except UserError as error:
        return error.problems[0]
    except json.JSONDecodeError as error:
        return Problem(
            where, shown, "one JSON object a line", f"not JSON: {error.msg} at column {error.colno}"
        )
    except (ValueError, RecursionError) as error:
        return Problem(
            where, shown, "one JSON object a line", f"not JSON that can be read: {error}"
        )
    if isinstance(row, dict):
        return row
    return Problem(
        where, shown, '{"column": "text", ...}', "this row is not an object: name its columns"
    )


def text_of(value: Any) -> str:
    """All text in a cell or row: strings, in lists and objects too (messages of a conversation,
    choices).
    """
    found, waiting = [], [value]
    while waiting:
        some = waiting.pop()
        if isinstance(some, str):
            found.append(some)
        elif isinstance(some, dict):
            waiting.extend(reversed(some.values()))
        elif isinstance(some, list):
            waiting.extend(reversed(some))
    return "\n".join(found)
