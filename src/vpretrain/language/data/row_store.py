"""Rows and documents in temporary files: a million of either takes about ten megabytes of memory.

The files are unnamed, in the folder of ``tempfile`` (``$TMPDIR``), and vanish with the object or
the process.
"""

from __future__ import annotations

import marshal
import os
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import IO, Any, TypeVar, overload

from vpretrain.language.data.rows import Document, Row, Tokens
from vpretrain.system.errors import Fault

_RECORDS_PER_READ = 1_000  # records in a read during iteration

T = TypeVar("T")


class _Stored(Sequence[T]):
    """An append-only sequence of records in a temporary file, with random access. It uses
    positioned reads, so that forked processes can read too."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vpretrain-", buffering=1 << 20)  # noqa: SIM115
        weakref.finalize(self, _closed, self._file)
        self._ends = array("q", [0])
        self._flushed = True

    @abstractmethod
    def _unpacked(self, record: Any) -> T:
        """The item that a record encodes."""

    def _lay_down(self, record: tuple[Any, ...]) -> None:
        """Appends a record; ``Fault`` if the disk is full."""
        packed = marshal.dumps(record)
        self._flushed = False
        with _room_or_fault():
            self._file.write(packed)
        self._ends.append(self._ends[-1] + len(packed))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _RECORDS_PER_READ):
            yield from self._between(start, min(start + _RECORDS_PER_READ, len(self)))

    @overload
    def __getitem__(self, index: int, /) -> T: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[T]: ...
    def __getitem__(self, index: int | slice, /) -> T | list[T]:
        if isinstance(index, slice):
            places = range(len(self))[index]
            if places.step == 1:
                return self._between(places.start, places.stop)
            return [self[place] for place in places]
        if index < 0 or index >= len(self):
            index = range(len(self))[index]
        return self._unpacked(marshal.loads(self._bytes(self._ends[index], self._ends[index + 1])))

    def _between(self, start: int, stop: int) -> list[T]:
        """The items ``start:stop``, in one read."""
        ends = self._ends[start : max(start, stop) + 1]
        block = memoryview(self._bytes(ends[0], ends[-1]))
        records = (block[a - ends[0] : b - ends[0]] for a, b in pairwise(ends))
        return [self._unpacked(marshal.loads(record)) for record in records]

    def _bytes(self, start: int, end: int) -> bytes:
        if not self._flushed:
            with _room_or_fault():
                self._file.flush()
            self._flushed = True
        return os.pread(self._file.fileno(), end - start, start)


class StoredRows(_Stored[Row]):
    """Rows of one source, stored on disk.

    Args:
        source: name of the source.
        rows: initial rows.
    """

    def __init__(self, source: str, rows: Iterable[Row] = ()) -> None:
        super().__init__()
        self._source = source
        self.extend(rows)

    def append(self, row: Row) -> None:
        """Appends a row; ``Fault`` if the disk is full."""
        tokens = None if row.tokens is None else tuple(row.tokens)
        content = (row.prompt, row.text, row.origin, row.question, row.conversation, tokens)
        self._lay_down(content)

    def extend(self, rows: Iterable[Row]) -> None:
        """Appends rows; ``Fault`` if the disk is full."""
        for row in rows:
            self.append(row)

    def _unpacked(self, record: Any) -> Row:
        prompt, text, origin, question, conversation, packed = record
        tokens = None if packed is None else Tokens(*packed)
        return Row(prompt, text, origin, self._source, question, conversation, tokens)


class StoredDocuments(_Stored[Document]):
    """Documents of one source, stored on disk; :meth:`keep` is the callback of
    :func:`vpretrain.language.data.rows.encode_into`.

    Args:
        source: name of the source.

    Attributes:
        lengths: tokens of each document, int32.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source
        self.lengths = array("i")

    def keep(self, ids: list[int], predicted: bytes, row: Row) -> None:
        """Appends a document; ``predicted`` has one byte a token, 1 if it is predicted."""
        self._lay_down((array("i", ids).tobytes(), predicted, row.origin))
        self.lengths.append(len(ids))

    def _unpacked(self, record: tuple[bytes, bytes, str]) -> Document:
        packed, predicted, origin = record
        return Document(array("i", packed), predicted, origin, self._source)


def _closed(file: IO[bytes]) -> None:
    """Closes a file; a full disk was already reported, and the lost data will not be read."""
    with suppress(OSError):
        file.close()


@contextmanager
def _room_or_fault() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"rows cannot be laid down in {tempfile.gettempdir()}: {error.strerror}"
        raise Fault(f"{message}; set TMPDIR to a folder on a disk with more room") from error
