"""Removes near-duplicates of protected rows from a stream, and keeps the pairs for review.

The stream is read once and never held in memory: pieces of it go to worker processes and come back
in order, so the output does not depend on their number. Beside the output are written the removed
rows, each with the protected text it resembles, and a certificate that tells training what the file
was checked against.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vpretrain.language.data import certificate
from vpretrain.language.data.raw_rows import lines, places, text_of
from vpretrain.language.data.similarity import NGRAM, THRESHOLD, Match, Protected
from vpretrain.system.errors import Problem, UserError, abbreviated, user_error
from vpretrain.system.files import replacing
from vpretrain.system.locations import Place
from vpretrain.system.tables import Unit, parsed

_PIECE_ROWS, _PIECE_BYTES = 1_000, 4_000_000  # whichever fills a piece first
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Summary:
    """Counts and output files of a decontamination.

    Args:
        rows: number of rows read from the stream.
        removed: number of rows left out of ``out``.
        report: path of the removed rows, JSON Lines: ``file``, ``line``, ``similarity``,
            ``matched`` (``file:line``), ``column``, and the two texts, ``text`` and ``protected``.
        out: path of the kept rows.
        certificate: path of the certificate.
        protected: number of distinct texts searched for.
        unprotected: number of texts too short, or too similar to the others, to be searched for.
    """

    rows: int
    removed: int
    report: str
    out: str
    certificate: str
    protected: int
    unprotected: int


@dataclass(frozen=True)
class _Piece:
    """Consecutive rows of one file as lines of JSON, with their line (parquet: row) numbers."""

    file: Place
    numbers: list[int]
    lines: list[bytes]


@dataclass(frozen=True)
class _Text:
    origin: str
    column: str
    text: str


def decontaminate(
    stream: Sequence[str],
    against: Sequence[str],
    out: Path,
    *,
    columns: Sequence[str] = (),
    document: Unit = "line",
    ngram: int = NGRAM,
    threshold: float = THRESHOLD,
    jobs: int = 1,
    report: Path | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Summary:
    """Writes a stream without the rows that contain, or nearly duplicate, a protected row.

    The text of all columns of a stream row is searched. Files may be of any kind that a recipe
    reads; kept rows of JSON Lines are copied byte for byte.

    Args:
        stream: files or globs, in the order of the output.
        against: files or globs of the protected rows: feedback and evaluation sets.
        out: the JSON Lines file to write, which appears only once it is complete.
        columns: columns of the protected rows, each searched for separately; empty for all columns
            with text.
        document: unit of plain text that forms a row.
        ngram: words in an n-gram.
        threshold: least similarity of a removed row, in (0, 1].
        jobs: number of processes.
        report: file of the removed rows; None puts it beside ``out``.
        progress: called with the number of rows done so far.

    Raises:
        UserError: a file, row or column cannot be used, or no text can be protected.
    """
    # .ndjson: a stream given as *.jsonl must not match the report
    report = report or out.with_name(out.name + ".removed.ndjson")
    sources, shields = places(stream, "STREAM"), places(against, "--against")
    _check_apart(sources, shields)
    _writable(out, report, sources + shields)
    texts = list(_protected_texts(shields, columns))
    protected = _protected(texts, ngram, threshold)
    screened = _screened(_pieces(sources, document), protected, jobs)
    rows, removed = _sorted_out(sources, screened, texts, out, report, progress)
    beside = certificate.Certificate(
        stream=[str(path) for path in sources],
        against={str(path): certificate.digest(path) for path in shields},
        columns=list(columns),
        ngram=ngram,
        threshold=threshold,
        rows=rows,
        removed=removed,
        out_bytes=out.stat().st_size,
        texts=sorted({certificate.fingerprint(text.text) for text in texts}),
    ).write(out)
    paths = (str(report), str(out), str(beside))
    return Summary(rows, removed, *paths, len(protected), len(protected.unprotected))


def _protected(texts: Sequence[_Text], ngram: int, threshold: float) -> Protected:
    protected = Protected([text.text for text in texts], ngram=ngram, threshold=threshold)
    if not len(protected):
        message = "nothing to look for: each text is too short, or shares all words with others"
        accepted = f"texts of {ngram + 2} different words or more"
        raise user_error("--against", message, value=f"{len(texts)} texts", accepted=accepted)
    return protected


def _sorted_out(
    sources: Sequence[Place],
    screened: Iterable[tuple[_Piece, Matches]],
    texts: Sequence[_Text],
    out: Path,
    report: Path,
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """Writes each row to ``out`` or ``report``; returns the numbers of all and of removed rows."""
    rows = removed = 0
    with (
        replacing(out) as scratch,
        replacing(report) as scratch_report,
        scratch.open("wb") as kept,
        scratch_report.open("wb") as left_out,
    ):
        for piece, matches in screened:
            for at, (number, line) in enumerate(zip(piece.numbers, piece.lines, strict=True)):
                if at not in matches:
                    kept.write(line)
                    continue
                text, match = matches[at]
                record = {
                    "file": str(piece.file),
                    "line": number,
                    "similarity": round(match.similarity, 4),
                    "matched": texts[match.text].origin,
                    "column": texts[match.text].column,
                    "text": text,
                    "protected": texts[match.text].text,
                }
                packed = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
                left_out.write(packed + b"\n")
            rows += len(piece.lines)
            removed += len(matches)
            progress(rows)
        if not rows:
            message, accepted = "it holds no rows", "files with a row or more"
            shown = abbreviated(map(str, sources), 3)
            raise user_error("STREAM", message, value=shown, accepted=accepted)
        # A certificate of an earlier file of this name must not apply to the new one.
        certificate.path_of(out).unlink(missing_ok=True)
    return rows, removed


def _check_apart(sources: Sequence[Place], shields: Sequence[Place]) -> None:
    if both := {*map(_real, sources)} & {*map(_real, shields)}:
        message = "the stream holds this file too, and all of it would go: take it out of one"
        accepted = "files that are not in the stream"
        shown = abbreviated(sorted(map(str, both)), 3)
        raise user_error("--against", message, value=shown, accepted=accepted)


def _writable(out: Path, report: Path, inputs: Sequence[Place]) -> None:
    taken = {*map(_real, inputs)}
    for flag, path in (("--out", out), ("--report", report)):
        folder = path.absolute().parent
        if path.resolve() in taken:
            message = "this file has another role too, and would be lost: name another"
        elif path.is_dir():
            message = "this is a folder: name a file in it"
        elif not folder.is_dir():
            message = f"there is no folder {folder}: make it, or name another"
        elif not os.access(folder, os.W_OK):
            message = f"no permission to write in {folder}: name another"
        else:
            taken.add(path.resolve())
            continue
        accepted = "a new file, or one that may be replaced"
        raise user_error(flag, message, value=str(path), accepted=accepted)


def _real(place: Place) -> Place:
    return place.resolve() if isinstance(place, Path) else place


def _pieces(files: Sequence[Place], document: Unit) -> Iterator[_Piece]:
    for file in files:
        piece, size = _Piece(file, [], []), 0
        for number, line in lines(file, document):
            piece.numbers.append(number)
            piece.lines.append(line)
            size += len(line)
            if len(piece.lines) == _PIECE_ROWS or size >= _PIECE_BYTES:
                yield piece
                piece, size = _Piece(file, [], []), 0
        if piece.lines:
            yield piece


def _protected_texts(files: Sequence[Place], columns: Sequence[str]) -> Iterator[_Text]:
    problems: list[Problem] = []
    for file in files:
        empty = True
        for number, line in lines(file):
            empty, origin = False, f"{file}:{number}"
            row = parsed(line, origin)
            if isinstance(row, Problem):
                problems.append(row)
            else:
                for column in columns or row:
                    if text := text_of(row.get(column)):
                        yield _Text(origin, column, text)
                    elif columns:
                        what = "holds no text" if column in row else "is not in this row"
                        there = ", ".join(repr(name) for name in row if text_of(row[name]))
                        message = f"the column {what}: correct --columns"
                        accepted = there or "none with text"
                        problems.append(Problem(origin, repr(column), accepted, message))
            if len(problems) >= _PROBLEMS_SHOWN:
                raise UserError(*problems)
        if empty:
            message = "this file holds no rows: it would protect nothing"
            problems.append(Problem("--against", str(file), "a file with a row or more", message))
    if problems:
        raise UserError(*problems)


# The rows to remove from a piece, by index: text of the row, and the protected text it resembles.
Matches = dict[int, tuple[str, Match]]


def _screened(
    pieces: Iterable[_Piece], protected: Protected, jobs: int
) -> Iterator[tuple[_Piece, Matches]]:
    """Each piece with its rows to remove, in order; holds two pieces a process in memory."""
    if jobs == 1:
        for piece in pieces:
            yield piece, _usable(_screen(piece, protected))
        return
    waiting: deque[tuple[_Piece, Future[Matches | list[Problem]]]] = deque()
    context = multiprocessing.get_context("spawn")  # torch may hang after a fork
    with ProcessPoolExecutor(jobs, context, initializer=_set_up, initargs=(protected,)) as pool:
        try:
            for piece in pieces:
                waiting.append((piece, pool.submit(_screen_here, piece)))
                if len(waiting) >= 2 * jobs:
                    first, future = waiting.popleft()
                    yield first, _usable(future.result())
            for first, future in waiting:
                yield first, _usable(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _usable(result: Matches | list[Problem]) -> Matches:
    if isinstance(result, list):
        raise UserError(*result)
    return result


def _screen(piece: _Piece, protected: Protected) -> Matches | list[Problem]:
    matches: Matches = {}
    problems: list[Problem] = []
    for at, (number, line) in enumerate(zip(piece.numbers, piece.lines, strict=True)):
        row = parsed(line, f"{piece.file}:{number}")
        if isinstance(row, Problem):
            problems.append(row)
            if len(problems) == _PROBLEMS_SHOWN:
                break
        elif match := protected.best(text := text_of(row)):
            matches[at] = text, match
    return problems or matches


_here: Protected  # set once in each worker process by _set_up


def _set_up(protected: Protected) -> None:
    global _here
    _here = protected


def _screen_here(piece: _Piece) -> Matches | list[Problem]:
    return _screen(piece, _here)
