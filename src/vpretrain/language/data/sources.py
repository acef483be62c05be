"""Rows from files and hub data sets, one at a time: what cannot be used comes as a problem in the
place of its row. Files are read as they are, so that a row is named by its ``file:line``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from vpretrain.language.data.columns import Columns
from vpretrain.language.data.opening import (
    brief,
    kind_by_name,
    not_utf8,
    numbered,
    readable,
    records,
)
from vpretrain.language.data.rows import Row
from vpretrain.language.recipe.rows import Hub
from vpretrain.system.errors import Problem, UserError, user_error

_FILES_SHOWN = 10
_ROWS_PER_READ = 1_000  # of a hub data set

Rows = Iterator[Row | Problem]


def table(path: Path, kind: str, columns: Columns) -> Rows:
    """The rows of a table (see :func:`vpretrain.language.data.opening.records`), named
    ``file:line``, or ``file:row`` where a file has no lines.

    Raises:
        UserError: it cannot be read, is of another kind, or lacks a column.
    """

    def choose(names: Sequence[str]) -> list[str]:
        if problem := columns.missing(names, str(path)):
            raise UserError(problem)
        return list(columns.read)

    _check_file(path, columns.where)
    if (named := kind_by_name(path)) not in (None, "text", kind):
        message = f"{path.name} is a file of another kind, by its name"
        raise user_error(f"{columns.where}.kind", message, value=kind, accepted=str(named))
    with readable(path, kind, f"{columns.where}.path"):
        for number, cells in records(path, kind, choose):
            if isinstance(cells, Problem):
                yield cells
            elif columns.keeps(cells):
                yield columns.row(cells, f"{path}:{number}")


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
        number = 0
        for batch in table.iter(_ROWS_PER_READ):  # row by row takes ten times as long
            for values in zip(*batch.values(), strict=True):
                number += 1
                cells = dict(zip(batch, values, strict=True))
                if columns.keeps(cells):
                    yield columns.row(cells, f"{spec.path}/{spec.split}:{number}")
    except UserError:
        raise
    except Exception as error:  # datasets, huggingface_hub and the network raise their own
        hint = ""
        if os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0"):
            hint = " (HF_HUB_OFFLINE is set, so only what was cached before is available)"
        message = f"this data set cannot be read from the hub{hint}: {brief(error)}"
        accepted = "id, configuration, split and revision of one that is online or cached"
        where = f"{columns.where}.path"
        raise user_error(where, message, value=spec.path, accepted=accepted) from error


def _lines(path: Path, where: str) -> Iterator[tuple[int, bytes]]:
    _check_file(path, where)
    with readable(path, "text", f"{where}.path"):
        for number, line in numbered(path):
            yield number, line.rstrip(b"\r\n")


def files(pattern: Path, where: str) -> list[Path]:
    """The file of this path; or, if there is none and it is a pattern (``*``, ``?``, ``[``,
    ``**``), all that match it, sorted; a file that several links lead to comes once.

    Of a folder that ``datasets`` saved (``save_to_disk``) these are its Arrow files, in its order.

    Raises:
        UserError: nothing matches; ``where`` is the dotted recipe key of the section.
    """
    if (pattern / "state.json").is_file():
        return _saved(pattern, where)
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


def _saved(folder: Path, where: str) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / each["filename"] for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"the state.json of this folder names no data files: {brief(error)}"
        accepted = "a folder that save_to_disk of `datasets` wrote"
        raise user_error(f"{where}.path", message, value=str(folder), accepted=accepted) from error


def _check_file(path: Path, where: str) -> None:
    if path.is_file():
        return
    accepted = _there(path.parent, path.suffix)
    if splits := sorted(each.parent.name for each in path.glob("*/state.json")):
        message = "this folder holds several data sets: name the folder of one"
        accepted = ", ".join(str(path / split) for split in splits)
    elif path.is_dir():
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
