"""Rows from files and hub data sets, one at a time: what cannot be used comes as a problem in the
place of its row. Files are read as they are, so that a row is named by its ``file:line``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from vpretrain.language.data.columns import Columns
from vpretrain.language.data.raw_rows import BROKEN, not_utf8, numbered, parsed
from vpretrain.language.data.rows import Row
from vpretrain.language.recipe.rows import Hub
from vpretrain.system.errors import Problem, UserError, user_error

_FILES_SHOWN = 10
_ROWS_PER_READ = 1_000  # of a table

Rows = Iterator[Row | Problem]


def jsonl(path: Path, columns: Columns) -> Rows:
    """The rows of a JSONL file (UTF-8, one object a line, gzip where it ends in ``.gz``; blank
    lines, a byte order mark and CRLF are fine); ``UserError`` if it cannot be read."""
    for number, line in _lines(path, columns.where):
        if not line.strip():
            continue
        origin = f"{path}:{number}"
        row = parsed(line, origin)
        if isinstance(row, Problem):
            yield row
        elif columns.keeps(row):
            yield columns.row(row, origin)


def text(
    path: Path, source: str, where: str, *, document: Literal["file", "paragraph", "line"]
) -> Rows:
    """The raw text of a file (UTF-8): all of it, its paragraphs (blank lines stand between them),
    or its lines; ``UserError`` if it cannot be read.

    Blank lines before a document and white space after it are left out, CRLF becomes LF, and a
    blank document is none. One that holds bytes which are not UTF-8 is wrong as a whole.
    """
    lines: list[str] = []
    flaw: Problem | None = None
    start = 1

    def finished() -> Rows:
        if flaw is not None:
            yield flaw
        elif whole := "\n".join(lines).rstrip():
            yield Row("", whole, f"{path}:{start}", source)

    for number, line in _lines(path, where):
        if document == "line" or (document == "paragraph" and not line.strip()):
            yield from finished()
            lines.clear()
            flaw = None
        if not lines and flaw is None:
            start = number
        try:
            if lines or line.strip():
                lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            flaw = flaw or not_utf8(f"{path}:{number}", error)
    yield from finished()


def parquet(path: Path, columns: Columns) -> Rows:
    """The rows of a parquet file, named ``file:row`` from 1; ``UserError`` if it cannot be read or
    lacks a column."""
    import pyarrow.parquet as pq  # slow to import, and only who reads a table needs it
    from pyarrow import ArrowInvalid

    try:
        _check_file(path, columns.where)
        with pq.ParquetFile(path) as file:
            if problem := columns.missing(file.schema_arrow.names, str(path)):
                raise UserError(problem)
            batches = file.iter_batches(_ROWS_PER_READ, columns=list(columns.read))
            yield from _of_table((_cells(batch) for batch in batches), columns, f"{path}:")
    except (OSError, ArrowInvalid) as error:
        message, where = f"this cannot be read as a parquet file: {_brief(error)}", columns.where
        accepted = "a whole parquet file"
        raise user_error(f"{where}.path", message, value=str(path), accepted=accepted) from error


def hub(spec: Hub, columns: Columns) -> Rows:
    """The rows of a hub data set, in its order, named ``path/split:row`` from 1.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    import datasets

    try:
        options = spec.model_dump(include={"path", "name", "split", "revision", "streaming"})
        table = datasets.load_dataset(**options)
        if (names := table.column_names) is not None:
            if problem := columns.missing(names, f"{spec.path}/{spec.split}"):
                raise UserError(problem)
            table = table.select_columns(list(columns.read))
        yield from _of_table(table.iter(_ROWS_PER_READ), columns, f"{spec.path}/{spec.split}:")
    except UserError:
        raise
    except Exception as error:  # datasets, huggingface_hub and the network raise their own
        hint = ""
        if os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0"):
            hint = " (HF_HUB_OFFLINE is set, so only what was cached before is available)"
        message = f"this data set cannot be read from the hub{hint}: {_brief(error)}"
        accepted = "id, configuration, split and revision of one that is online or cached"
        where = f"{columns.where}.path"
        raise user_error(where, message, value=spec.path, accepted=accepted) from error


def _of_table(batches: Iterable[dict[str, list[Any]]], columns: Columns, origin: str) -> Rows:
    number = 0
    for batch in batches:
        for values in zip(*batch.values(), strict=True):
            number += 1
            cells = dict(zip(batch, values, strict=True))
            if columns.keeps(cells):
                yield columns.row(cells, f"{origin}{number}")


def _cells(batch: Any) -> dict[str, list[Any]]:
    """Columns as lists; a string that is not UTF-8 stays bytes, so that its row can be named."""
    try:
        return batch.to_pydict()
    except UnicodeDecodeError:
        import pyarrow as pa

        kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
        raw = {
            name: batch[name].view(kinds.get(batch[name].type, batch[name].type)).to_pylist()
            for name in batch.schema.names
        }
        return {name: [_decoded(cell) for cell in cells] for name, cells in raw.items()}


def _decoded(cell: Any) -> Any:
    try:
        return cell.decode("utf-8") if isinstance(cell, bytes) else cell
    except UnicodeDecodeError:
        return cell


def _lines(path: Path, where: str) -> Iterator[tuple[int, bytes]]:
    _check_file(path, where)
    try:
        for number, line in numbered(path):
            yield number, line.rstrip(b"\r\n")
    except BROKEN as error:
        message = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        where, accepted = f"{where}.path", "a readable file"
        raise user_error(where, message, value=str(path), accepted=accepted) from error


def files(pattern: Path, where: str) -> list[Path]:
    """The file of this path; or, if there is none and it is a pattern (``*``, ``?``, ``[``,
    ``**``), all that match it, sorted; a file that several links lead to comes once.

    Raises:
        UserError: nothing matches; ``where`` is the dotted recipe key of the section.
    """
    if pattern.exists() or not any(sign in str(pattern) for sign in "*?["):
        return [pattern]  # reading it reports what is wrong with it
    plain = (each for each in pattern.parents if not any(sign in str(each) for sign in "*?["))
    fixed = next(plain)
    matches = sorted(path for path in fixed.glob(str(pattern.relative_to(fixed))) if path.is_file())
    if not matches:
        message, there = "no file matches this pattern: correct it", _there(fixed, pattern.suffix)
        raise user_error(f"{where}.path", message, value=str(pattern), accepted=there)
    once: dict[str, Path] = {}
    for path in matches:
        once.setdefault(os.path.realpath(path), path)
    return list(once.values())


def _check_file(path: Path, where: str) -> None:
    if path.is_file():
        return
    accepted = _there(path.parent, path.suffix)
    if path.is_dir():
        message = "this is a folder: name a file in it, or all of them with a pattern (*)"
        accepted = _there(path, path.suffix or ".jsonl")
    elif path.is_symlink():
        message = "this link leads nowhere, or in a circle: correct it, or name the file itself"
    elif path.exists():
        message = "this is no ordinary file: name one"
    elif path.parent.is_dir():
        message = "there is no such file: correct the path, or make the file"
    else:
        start = Path.cwd()
        message = f"there is no such file, nor its folder: correct the path (it starts at {start})"
    raise user_error(f"{where}.path", message, value=str(path), accepted=accepted)


def _there(folder: Path, ending: str) -> str:
    if not folder.is_dir():
        return f"a file in a folder that exists; {folder} does not"
    entries = (each for each in folder.iterdir() if each.is_file() and each.suffix == ending)
    names = sorted(entry.name for entry in entries)
    if not names:
        missing = f"*{ending}" if ending else "file without an ending"
        return f"a file that is there (no {missing} is in {folder})"
    more = f" and {len(names) - _FILES_SHOWN} more" if len(names) > _FILES_SHOWN else ""
    return f"one of those in {folder}: {', '.join(names[:_FILES_SHOWN])}{more}"


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
