"""What a decontaminated stream was checked against, and whether that covers what a run uses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

from vpretrain.language.data.rows import Row, asked
from vpretrain.language.data.similarity import words
from vpretrain.system.errors import Problem
from vpretrain.system.files import write_json

SUFFIX = ".decontaminated.json"


@dataclass(frozen=True)
class Certificate:
    """What ``vpretrain decontaminate`` did.

    Args:
        stream: the files that were read.
        against: SHA-256 of every file with protected rows, by its path.
        columns: those protected; empty for all that hold text.
        ngram: words in an n-gram.
        threshold: least similarity that was removed.
        rows: rows read.
        removed: rows taken out.
        out_bytes: size of what was written, by which a changed file is told.
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
        """Writes it beside the stream, and returns its path."""
        path = path_of(stream)
        write_json(path, asdict(self))
        return path


def path_of(stream: Path) -> Path:
    """Where the certificate of a stream is, or would be."""
    return stream.with_name(stream.name + SUFFIX)


def fingerprint(text: str) -> str:
    """64 bits of a text, the same whatever its case, punctuation and layout."""
    return blake2b(" ".join(words(text)).encode("utf-8", "replace"), digest_size=8).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read(stream: Path) -> Certificate | None:
    """The certificate of a stream; None where there is none of this file as it is now."""
    try:
        certificate = Certificate(**json.loads(path_of(stream).read_text(encoding="utf-8")))
        return certificate if stream.stat().st_size == certificate.out_bytes else None
    except (OSError, ValueError, TypeError):
        return None


def checked_against(stream: Path, rows: Iterable[Row]) -> bool | None:
    """Whether a stream was searched for near-duplicates of these rows.

    A row is covered if the file that it was read from (by its ``origin``; the content counts, not
    the name) was protected, whatever template its prompt was put into; or if its prompt itself was,
    read from anywhere (its text, where it has no prompt): a question with another solution is the
    same leak.

    None if the stream was never checked, or changed since.
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


def unchecked(streams: Iterable[tuple[str, Path]], rows: Iterable[Row]) -> list[Problem]:
    """A warning for each file that was not checked against all verified and held-out rows.

    Args:
        streams: the files of the stream, each with the dotted recipe key that names it.
        rows: those of the feedback and evaluation sets; generated ones are left out.
    """
    rows = list(rows)
    files = {name for name in {_file_of(row) for row in rows} if Path(name).is_file()}
    rows = [row for row in rows if _file_of(row) in files]
    doubts = []
    for where, path in streams:
        covered = checked_against(path, rows)
        if not rows or covered:
            continue
        state = "was never searched for" if covered is None else "was not searched for all"
        command = f"`vpretrain decontaminate {path} --against FILE... --out CLEAN`"
        message = f"{path} {state} near-duplicates of the feedback and evaluation rows, which "
        message += f"would flatter the results; {command} writes a file without them"
        accepted = f"a file with its certificate, *{SUFFIX}, beside it"
        doubts.append(Problem(where, str(path), accepted, message))
    return doubts


def _file_of(row: Row) -> str:
    return row.origin.rpartition(":")[0]
