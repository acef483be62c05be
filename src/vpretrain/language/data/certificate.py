"""Certificates of decontaminated streams: what a stream was checked against, and whether that
covers the feedback and evaluation rows of a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b, file_digest
from itertools import chain, count
from pathlib import Path

from vpretrain.language.data.rows import Row, asked
from vpretrain.language.data.similarity import words
from vpretrain.system.errors import Problem
from vpretrain.system.files import write_json
from vpretrain.system.locations import Place, Remote, is_url, opened

SUFFIX = ".decontaminated.json"


@dataclass(frozen=True)
class Certificate:
    """Record of one call of ``vpretrain decontaminate``.

    Args:
        stream: the files that were read.
        against: SHA-256 of every file of protected rows, by path.
        columns: the protected columns; empty for all columns with text.
        ngram: words in an n-gram.
        threshold: least similarity of a removed row.
        rows: number of rows read.
        removed: number of rows removed.
        out_bytes: size of the written file, to detect a later change.
        texts: fingerprints of the protected texts, sorted.
    """

    stream: list[str]
    against: dict[str, str]
    columns: list[str]
    ngram: int
    threshold: float
    rows: int
    removed: int
    out_bytes: int
    texts: list[str]

    def write(self, stream: Path) -> Path:
        """Writes the certificate beside the stream and returns its path."""
        path = path_of(stream)
        write_json(path, asdict(self))
        return path


def path_of(stream: Path) -> Path:
    """The path of a stream's certificate, whether or not it exists."""
    return stream.with_name(stream.name + SUFFIX)


def fingerprint(text: str) -> str:
    """64-bit hash of a text that ignores case, punctuation and layout."""
    return blake2b(" ".join(words(text)).encode("utf-8", "replace"), digest_size=8).hexdigest()


def digest(path: Place) -> str:
    """SHA-256 of a file's stored bytes."""
    with opened(path) as file:
        return file_digest(file, "sha256").hexdigest()


def read(stream: Place) -> Certificate | None:
    """The certificate of a stream; None if it has none, or was changed since."""
    if isinstance(stream, Remote):
        return None
    try:
        certificate = Certificate(**json.loads(path_of(stream).read_text(encoding="utf-8")))
        return certificate if stream.stat().st_size == certificate.out_bytes else None
    except (OSError, ValueError, TypeError):
        return None


def checked_against(stream: Place, rows: Iterable[Row]) -> bool | None:
    """Whether a stream was searched for near-duplicates of these rows.

    A row is covered if the file it was read from (its ``origin``) was protected; files are compared
    by content, and the template around the prompt does not matter. It is also covered if its
    question was protected, in any file (its text, if it has no prompt): a question with another
    solution is the same leak.

    None if the stream was never checked, or was changed since.
    """
    certificate = read(stream)
    if certificate is None:
        return None
    texts, digests = set(certificate.texts), set(certificate.against.values())
    files: dict[str, bool] = {}
    for row in rows:
        name = _file_of(row)
        if name not in files:
            files[name] = Path(name).is_file() and digest(Path(name)) in digests
        if not files[name] and fingerprint(asked(row)) not in texts:
            return False
    return True


@dataclass(frozen=True)
class StreamFiles:
    """The files of one source of a stream.

    Args:
        where: dotted recipe key of the source's rows.
        pattern: pattern of the files, as an argument of ``vpretrain decontaminate``.
        files: the files that match the pattern.
        root: folder that relative paths of the recipe start from.
        unit: unit of plain text that forms a document; None for tables.
    """

    where: str
    pattern: str
    files: Sequence[Place]
    root: Path = Path()
    unit: str | None = None


def unchecked(streams: Iterable[StreamFiles], rows: Iterable[Row]) -> list[Problem]:
    """Warnings for sources that were not checked against all feedback and evaluation rows, each
    with the command that does it.

    Args:
        streams: the sources that are read from files.
        rows: rows of the feedback and evaluation sets; rows that come from no file are ignored.
    """
    rows = list(rows)
    files = {
        name for name in {_file_of(row) for row in rows} if is_url(name) or Path(name).is_file()
    }
    rows = [row for row in rows if _file_of(row) in files]
    doubts: list[Problem] = []
    outs: list[str] = []
    for stream in streams if rows else ():
        covered = [checked_against(path, rows) for path in stream.files]
        if all(covered):
            continue
        state = "were never searched for" if None in covered else "were not searched for all"
        outs.append(_out(Path(stream.pattern), outs))
        command = _command(stream, files, outs[-1])
        message = f"{_counted(stream, covered)} {state} near-duplicates; {command}"
        accepted = f"a file with its certificate, *{SUFFIX}, beside it"
        doubts.append(Problem(f"{stream.where}.path", stream.pattern, accepted, message))
    return doubts


def _counted(stream: StreamFiles, covered: Sequence[bool | None]) -> str:
    if len(covered) == 1:
        return f"the rows of {stream.pattern}"
    return f"{len(covered) - covered.count(True)} files of {stream.pattern}"


def _out(pattern: Path, taken: Collection[str]) -> str:
    """A name for the decontaminated file that is not ``taken`` by another source."""
    folder = pattern.parent.name.strip("*?[]")
    name = pattern.name.partition(".")[0].strip("*?[]-_ ") or folder or "stream"
    names = chain((name, f"{folder}-{name}"), (f"{name}-{number}" for number in count(2)))
    return next(out for each in names if (out := f"{each}.clean.jsonl") not in taken)


def _command(stream: StreamFiles, against: Iterable[str], out: str) -> str:
    """The command that decontaminates a source, and the override that then names its output."""
    pattern, where = Path(stream.pattern), stream.where
    saved = pattern / "*.arrow" if pattern.is_dir() else pattern
    words = ["vpretrain", "decontaminate", str(saved), "--against", *sorted(against)]
    if stream.unit not in (None, "line"):
        words += ["--document", str(stream.unit)]
    words += ["--out", str(stream.root / out)]
    then = f"{where}.path={out}"
    if stream.unit is not None:
        then = f"{where}={{kind: jsonl, path: {out}, text: text}}"
    elif pattern.suffix != ".jsonl":
        then = f"{where}.kind=jsonl and {then}"
    return f"`{shlex.join(words)}` writes them without; then set {then}"


def _file_of(row: Row) -> str:
    return row.origin.rpartition(":")[0]
