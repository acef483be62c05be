"""Reads lines of text, and records of tables in several formats.

A record comes with its number in the file, from 1: the line on which it begins, or the row in files
without lines (parquet, Arrow). An unusable record is replaced by a problem.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow
from pyarrow import parquet

from vpretrain.system.errors import Problem, UserError, brief, kind_of, shortened, user_error
from vpretrain.system.locations import Place, opened

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
"""Kinds of files by extension; ``.gz`` or ``.zst`` may follow for formats with lines."""

BROKEN = (OSError, EOFError, zlib.error, pyarrow.ArrowException)
"""Exceptions from reading an incomplete file."""

MOST_BYTES = 2**24
"""Maximum size of a row. A tokenizer takes a hundred times the memory of its input."""

_ROWS_PER_READ = 1_000  # of a table
_CHUNK_BYTES = 2**20  # of a JSON list

Record = dict[str, Any]
Records = Iterator[tuple[int, Record | Problem]]
Choose = Callable[[Sequence[str]], Sequence[str]]
Unit = Literal["file", "paragraph", "line"]


def kind_by_name(path: Place) -> str | None:
    """Returns the kind of a file by its extension; None if unknown."""
    return ENDINGS.get(Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix.lower())


@contextmanager
def readable(path: Place, kind: str, where: str) -> Iterator[None]:
    """Converts errors from reading a broken file to a ``UserError`` at ``where``."""
    try:
        yield
    except BROKEN as error:
        article = "an" if kind == "arrow" else "a"
        message = f"this cannot be read as {article} {kind} file: {brief(error)}"
        if strerror := getattr(error, "strerror", None):
            message = f"this file cannot be read: {strerror}"
        accepted = "a readable, whole file"
        raise user_error(where, message, value=str(path), accepted=accepted) from error


def records(
    path: Place, kind: str, choose: Choose, *, rows_per_read: int = _ROWS_PER_READ
) -> Records:
    """Yields the records of a table.

    Args:
        path: of a file.
        kind: one of :data:`ENDINGS`, except text.
        choose: given the column names of a table with a header or schema, returns those to read, or
            raises. JSON records are read whole.
        rows_per_read: rows of parquet and Arrow in memory at a time.

    Raises:
        UserError: the file cannot be read from the named line on.
        OSError, EOFError, ArrowException: it cannot be read at all; see :func:`readable`.
    """
    yield from _READERS[kind](path, choose, rows_per_read)


def numbered(path: Place) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file from number 1, decompressed, without a byte order mark.

    Raises:
        UserError: a line exceeds :data:`MOST_BYTES`, or the file breaks off in it.
    """
    number = 0
    with decompressed(path) as file:
        while True:
            number += 1
            try:
                line = file.readline(MOST_BYTES + 1)
            except BROKEN as error:
                message = f"from this line on the file cannot be read: {brief(error)}"
                accepted = "a whole file: make, copy or download it again"
                raise user_error(f"{path}:{number}", message, accepted=accepted) from error
            if not line:
                return
            check_length(line, f"{path}:{number}")
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def documents(path: Place, unit: Unit) -> Iterator[tuple[int, str | Problem]]:
    """Yields the documents of a plain text file, each with the line on which it begins.

    Blank lines before a document and trailing white space are dropped, CRLF becomes LF, and blank
    documents are skipped. A document with bytes that are not UTF-8 is a problem as a whole.

    Args:
        path: of a file.
        unit: a document is the file, a paragraph (separated by blank lines), or a line.
    """
    lines: list[str] = []
    flaw: Problem | None = None
    start = 1

    def finished() -> Iterator[tuple[int, str | Problem]]:
        if flaw is not None:
            yield start, flaw
        elif whole := "\n".join(lines).rstrip():
            yield start, whole

    for number, ended in numbered(path):
        line = ended.rstrip(b"\r\n")
        if unit == "line" or (unit == "paragraph" and not line.strip()):
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


def is_list(path: Place) -> bool:
    """Returns whether a file is a single JSON list; False if it cannot be read."""
    try:
        with decompressed(path) as file:
            return file.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    except BROKEN:
        return False


def parsed(line: bytes, origin: str) -> Record | Problem:
    """Returns the record in a line of JSON, or its problem."""
    line = line.rstrip(b"\r\n")
    try:
        return _record(json.loads(line.decode("utf-8")), origin)
    except UnicodeDecodeError as error:
        return not_utf8(origin, error)
    except (ValueError, RecursionError) as error:
        why = str(error)
        if isinstance(error, json.JSONDecodeError):
            why = f"{error.msg} at column {error.colno}"  # its line is the file's, not 1
        shown = shortened(line.decode("utf-8").strip())
        return Problem(origin, shown, "one JSON object a line", f"this row is not JSON: {why}")


def check_length(line: bytes | str, origin: str) -> None:
    """Rejects a row longer than :data:`MOST_BYTES`, of text in UTF-8."""
    size = len(line if isinstance(line, bytes) else line.encode(errors="surrogatepass"))
    if size > MOST_BYTES:
        message = "this row is too long: cut it into documents of a row each"
        raise user_error(origin, message, accepted=f"up to {MOST_BYTES >> 20} MiB a row")


def not_utf8(origin: str, error: UnicodeDecodeError) -> Problem:
    """Returns the problem of a line that is not UTF-8."""
    message = f"byte {error.start + 1} of this line is not UTF-8: convert the file (iconv -t UTF-8)"
    return Problem(origin, f"0x{error.object[error.start]:02x}", "UTF-8", message)


def decompressed(path: Place) -> Any:
    """Opens a file in binary mode; ``.gz``, ``.tgz`` and ``.zst`` are decompressed."""
    if path.suffix in (".gz", ".tgz"):
        return gzip.open(path if isinstance(path, Path) else opened(path))
    if path.suffix == ".zst":
        source = path if isinstance(path, Path) else opened(path)
        return io.BufferedReader(pyarrow.input_stream(source, compression="zstd"))
    return opened(path)


def _seekable(path: Place) -> Any:
    """Returns a source that pyarrow can seek in.

    This is a local path, an open file, or a temporary copy of one.
    """
    if isinstance(path, Path):
        return path
    file = opened(path)
    if file.seekable():
        return file
    copy = tempfile.TemporaryFile(prefix="vpretrain-")  # noqa: SIM115
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def _record(row: object, origin: str) -> Record | Problem:
    if isinstance(row, dict):
        return row
    message = f"this row is {kind_of(row)}, not an object: name its columns"
    return Problem(origin, shortened(json.dumps(row)), '{"column": "text", ...}', message)


def _json(path: Place, choose: Choose, rows_per_read: int) -> Records:
    if is_list(path):
        yield from _elements(path)
        return
    for number, line in numbered(path):
        if line.strip():
            yield number, parsed(line, f"{path}:{number}")


def _elements(path: Place) -> Records:
    """Yields the elements of a JSON list of any length."""
    raw_decode = json.JSONDecoder().raw_decode
    # Bytes that are not UTF-8 become lone surrogates, by which their row is detected.
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    between = re.compile(r"\s*,?\s*")
    with decompressed(path) as file:
        text, line, size = decode(file.read(_CHUNK_BYTES)), 1, _CHUNK_BYTES
        at = text.index("[") + 1
        line += text.count("\n", 0, at)
        while True:
            gap = between.match(text, at)
            start = gap.end() if gap else at
            line += text.count("\n", at, start)
            at = start
            if text.startswith("]", at):
                break
            try:
                row, end = raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                # Invalid, or only cut off at the end of this chunk: read more to find out.
                check_length(text[at:], f"{path}:{line}")
                if not (more := file.read(size)):
                    raise UserError(_broken_list(error, path, text, at, line)) from error
                text, at, size = text[at:] + decode(more), 0, 2 * size
                continue
            yield line, _element(row, text[at:end], f"{path}:{line}")
            line += text.count("\n", at, end)
            at, size = end, _CHUNK_BYTES
        if rest := (text[at + 1 :] + decode(file.read(_CHUNK_BYTES))).strip():
            message = "something follows after the list: write one list, or one object a line"
            raise user_error(f"{path}:{line}", message, value=shortened(rest), accepted="its end")


def _element(row: object, source: str, origin: str) -> Record | Problem:
    try:
        source.encode()
    except UnicodeEncodeError:
        message = "this row is not UTF-8: convert the file (iconv -t UTF-8)"
        return Problem(origin, shortened(ascii(source)), "UTF-8", message)
    return _record(row, origin)


def _broken_list(error: Exception, path: Place, text: str, at: int, line: int) -> Problem:
    place = error.pos if isinstance(error, json.JSONDecodeError) else at
    message = f"from here on the list is not JSON: {getattr(error, 'msg', error)}"
    if place >= len(text.rstrip()):
        message = "the list ends before its closing bracket: the file is cut off"
    where = f"{path}:{line + text.count(chr(10), at, place)}"
    return Problem(where, shortened(text[place:]), "[{...}, {...}]", message)


def _separated(path: Place, choose: Choose, rows_per_read: int, *, delimiter: str) -> Records:
    flaws: list[Problem] = []

    def decoded() -> Iterator[str]:
        for number, line in numbered(path):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                flaws.append(not_utf8(f"{path}:{number}", error))
                text = line.decode("utf-8", "replace")
            yield text

    csv.field_size_limit(MOST_BYTES)  # process-wide; the default of 128 KiB is too small
    rows = csv.reader(decoded(), delimiter=delimiter, strict=True)
    try:
        names = next(rows, None)
    except csv.Error as error:
        raise UserError(_not_csv(error, f"{path}:1")) from error
    if names is None:
        return
    if flaws:
        raise UserError(*flaws)
    if twice := next((name for name in choose(names) if names.count(name) > 1), None):
        message = "two columns have this name: rename one of them"
        raise user_error(f"{path}:1", message, value=twice, accepted="distinct names")
    while True:
        start = rows.line_num + 1
        flaws.clear()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, _not_csv(error, f"{path}:{start}")
            continue
        if flaws:
            yield start, flaws[0]
        elif len(cells) == len(names):
            yield start, dict(zip(names, cells, strict=True))
        elif cells:
            message = "this row has another number of cells than there are columns: quote a cell "
            message += "that holds a comma or a line break"
            if len(names) <= 2 and any(";" in name for name in names):
                message = "cells are told apart by commas, and this file seems to have semicolons: "
                message += "save it as CSV with commas, or with tabs as .tsv"
            accepted = f"{len(names)}: {shortened(', '.join(names))}"
            yield start, Problem(f"{path}:{start}", f"{len(cells)} cells", accepted, message)


def _not_csv(error: csv.Error, origin: str) -> Problem:
    if "new-line" in str(error):
        message = "a line ends in CR alone: end them in LF (tr '\\r' '\\n'), or quote this cell"
        return Problem(origin, "", "LF or CRLF", message)
    message = f"this row is not CSV: {error} (quotes in a cell are doubled)"
    return Problem(origin, "", "a row with its quotes closed", message)


def _parquet(path: Place, choose: Choose, rows_per_read: int) -> Records:
    with parquet.ParquetFile(_seekable(path)) as file:
        names = list(choose(file.schema_arrow.names))
        yield from _of_batches(file.iter_batches(rows_per_read, columns=names), path)


def _arrow(path: Place, choose: Choose, rows_per_read: int) -> Records:
    """Reads an Arrow file or stream, as written by ``datasets`` and ``pandas``."""
    source = _seekable(path)
    whole = pyarrow.memory_map(str(path)) if source is path else pyarrow.PythonFile(source, "r")
    with whole as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
        names = list(choose(reader.schema.names))
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        some = (
            batch.slice(start, rows_per_read).select(names)
            for batch in batches
            for start in range(0, batch.num_rows, rows_per_read)
        )
        yield from _of_batches(some, path)


def _of_batches(batches: Iterable[Any], path: Place) -> Records:
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_cells(batch.slice(at, 1)) for at in range(batch.num_rows)]
        for row in rows:
            number += 1
            if row is None:
                message = "a cell of this row is bytes, not text: it is not UTF-8; correct it"
                yield number, Problem(f"{path}:{number}", "", "UTF-8", message)
            else:
                yield number, row


def _cells(row: Any) -> Record | None:
    try:
        cells: Record = row.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return cells


_READERS: Mapping[str, Callable[[Place, Choose, int], Records]] = {
    "jsonl": _json,
    "csv": partial(_separated, delimiter=","),
    "tsv": partial(_separated, delimiter="\t"),
    "parquet": _parquet,
    "arrow": _arrow,
}
