"""Rows of files as lines of JSON, of JSON Lines, parquet and plain text."""

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

from vpretrain.language.data.columns import kind_of, shortened
from vpretrain.system.errors import Problem, UserError, user_error

_TEXT = (".txt", ".text", ".md")
_PARQUET_ROWS = 1_000  # held at once
_MOST_BYTES = 2**24
"""Of a row. A tokenizer takes a hundred times the memory of what it is given."""


def files(patterns: Sequence[str], where: str) -> list[Path]:
    """The files that names and globs of the flag ``where`` stand for, in their order, each once.

    Raises:
        UserError: with all names that stand for no file.
    """
    paths: dict[Path, None] = {}
    problems: list[Problem] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            message = "this is a folder: name files in it, or a glob"
            accepted = f"a file, or say '{path / '*.jsonl'}'"
            problems.append(Problem(where, pattern, accepted, message))
        elif path.exists():
            paths[path] = None
        else:
            names = map(Path, sorted(glob.glob(str(path), recursive=True)))
            matches = [name for name in names if name.is_file()]
            paths |= dict.fromkeys(matches)
            if not matches:
                message = f"no such file, and no file matches (paths start at {Path.cwd()})"
                accepted = "JSON Lines, parquet or plain text, or a glob of such"
                problems.append(Problem(where, pattern, accepted, message))
    if problems:
        raise UserError(*problems)
    return list(paths)


BROKEN = (OSError, EOFError, zlib.error)
"""What reading a file, compressed or not, raises where it is not whole."""


def numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file (``.gz`` is decompressed) from number 1, without a byte order mark.

    Raises:
        UserError: one is longer than any row may be.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MOST_BYTES + 1), b""), start=1):
            _check_length(line, f"{path}:{number}")
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _check_length(line: bytes, origin: str) -> None:
    if len(line) > _MOST_BYTES:
        message = "this row is too long: cut it into documents of a row each"
        raise user_error(origin, message, accepted=f"up to {_MOST_BYTES >> 20} MiB a row")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every row as a line of JSON, with its line number (parquet: row number) from 1; blank lines
    are none. ``UserError`` if the file cannot be read, or a line of a plain text is not UTF-8."""
    name = path.name.removesuffix(".gz")
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        for number, line in numbered(path):
            if not line.strip():
                continue
            if name.endswith(_TEXT):
                try:
                    line = _as_json({"text": line.decode("utf-8").rstrip("\r\n")})
                except UnicodeDecodeError as error:
                    raise UserError(not_utf8(f"{path}:{number}", error)) from None
            yield number, line if line.endswith(b"\n") else line + b"\n"
    except (*BROKEN, UnicodeDecodeError, pyarrow.ArrowException) as error:
        message = f"this file cannot be read: {getattr(error, 'strerror', None) or error}"
        raise user_error(str(path), message, accepted="a readable, whole file") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                line = _as_json(row)
                _check_length(line, f"{path}:{number}")
                yield number, line


def _as_json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"


def parsed(line: bytes, origin: str) -> dict[str, Any] | Problem:
    """The row of a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return not_utf8(origin, error)
    except (ValueError, RecursionError) as error:
        why = str(error)
        if isinstance(error, json.JSONDecodeError):
            why = f"{error.msg} at column {error.colno}"  # its line is the file's, not 1
        shown = shortened(line.decode("utf-8").strip())
        return Problem(origin, shown, "one JSON object a line", f"this row is not JSON: {why}")
    if isinstance(row, dict):
        return row
    message = f"this row is {kind_of(row)}, not an object: name its columns"
    return Problem(origin, shortened(json.dumps(row)), '{"column": "text", ...}', message)


def not_utf8(origin: str, error: UnicodeDecodeError) -> Problem:
    """The problem of a line that is not UTF-8."""
    message = f"byte {error.start + 1} of this line is not UTF-8: convert the file (iconv -t UTF-8)"
    return Problem(origin, f"0x{error.object[error.start]:02x}", "UTF-8", message)


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
