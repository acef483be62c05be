"""Pictures inside larger files: columns of tables, and members of WebDataset tars.

Reading a file only records where the bytes of each picture are; a picture is decoded when it is
drawn. Members of a local uncompressed tar are read in place. Pictures of a table, and tars that are
compressed or remote, are copied once to a temporary file (in ``$TMPDIR``) that is deleted with the
process.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from vpretrain.system.errors import Problem, brief, kind_of, shortened, user_error
from vpretrain.system.locations import Place, check_file, files
from vpretrain.system.tables import BROKEN, decompressed, kind_by_name, readable, records
from vpretrain.vision.data.decoding import Container, Member, Reopened
from vpretrain.vision.data.files import Files

PREFIX = "vpretrain-pictures-"
MOST_OPEN = 64
"""Local tars that are open at a time; a process may have no more than 256 files on some systems."""
_ROWS_PER_READ = 16  # rows are large: they hold pictures


@dataclass(frozen=True)
class Parts:
    """Columns of a table, or endings of a tar's members, that hold the parts of a sample.

    An entry can list several endings, separated by semicolons; the first one that a sample has is
    used. None: samples have no such part."""

    image: str
    labels: str | None = None
    depth: str | None = None
    category: str | None = None

    def named(self) -> dict[str, str]:
        """Return the column or ending of each part that samples have."""
        return {part: name for part, name in vars(self).items() if name is not None}


class AppendedFile:
    """An unnamed temporary file to which members are appended."""

    def __init__(self) -> None:
        self._within = Container(tempfile.TemporaryFile(prefix=PREFIX))  # noqa: SIM115
        self._end = 0

    def member(self, name: str, content: bytes) -> Member:
        """Append bytes and return where they are; raises ``OSError`` if the disk is full."""
        self._within.file.write(content)
        self._within.file.flush()
        start, self._end = self._end, self._end + len(content)
        return Member(name, self._within, start, len(content))


class Tars:
    """The tars of a recipe, of which there may be more than a process may have open files."""

    def __init__(self) -> None:
        self._opened = lru_cache(MOST_OPEN)(_opened)

    @cached_property
    def _copies(self) -> Container:
        return Container(tempfile.TemporaryFile(prefix=PREFIX))

    def open(self, place: Place) -> tuple[Container, Container | Reopened]:
        """Open a tar at its beginning; return it with the holder of its members.

        Tars that are compressed or remote are appended to one temporary file."""
        if isinstance(place, Path) and place.suffix == ".tar":
            opened = self._opened(place)
            opened.file.seek(0)
            return opened, Reopened(place, self._opened)
        start = self._copies.file.seek(0, os.SEEK_END)
        with decompressed(place) as file:
            shutil.copyfileobj(file, self._copies.file)
        self._copies.file.seek(start)
        return self._copies, self._copies


def table_samples(pattern: Place, kind: str, parts: Parts, where: str) -> Iterator[Files | Problem]:
    """Yield one sample per table row, named ``file:row``.

    A picture is the bytes of an image file, or ``{bytes, path}`` as in ``datasets``; without bytes,
    the path is used, relative to the table's folder.

    Raises:
        UserError: a file cannot be read, has another kind, or lacks a column.
    """
    storage = AppendedFile()
    for place in files(pattern, where):
        check_file(place, where)
        if (named := kind_by_name(Path(place.name))) not in (None, kind):
            message = f"{place.name} is a file of another kind, by its name"
            raise user_error(f"{where}.kind", message, value=kind, accepted=str(named))

        def choose(names: Sequence[str], place: Place = place) -> list[str]:
            for part, column in parts.named().items():
                if column not in names:
                    message = f"there is no column {column!r}: set {where}.{part} to one that is"
                    accepted = ", ".join(map(repr, names))
                    raise user_error(str(place), message, value=column, accepted=accepted)
            return list(dict.fromkeys(parts.named().values()))

        with readable(place, kind, f"{where}.path"):
            for number, cells in records(place, kind, choose, rows_per_read=_ROWS_PER_READ):
                if isinstance(cells, Problem):
                    yield cells
                else:
                    yield _row(cells, f"{place}:{number}", place, parts, storage)


def _row(
    cells: Mapping[str, Any], origin: str, place: Place, parts: Parts, storage: AppendedFile
) -> Files | Problem:
    maps: dict[str, Any] = {}
    for part, column in parts.named().items():
        cell = cells[column]
        if part == "category":
            if isinstance(cell, bool) or not isinstance(cell, int) or cell < 0:
                message = f"the category in column {column!r} is {kind_of(cell)}: correct the row"
                return Problem(origin, shortened(repr(cell)), "a whole number from 0", message)
            maps[part] = cell
            continue
        content, path = cell, None
        if isinstance(cell, dict):
            content, path = cell.get("bytes"), cell.get("path")
        name = origin if part == "image" else f"{origin} ({column})"
        if isinstance(content, bytes) and content:
            maps[part] = storage.member(name, content)
        elif isinstance(path, str) and isinstance(place, Path):
            maps[part] = place.parent / path
        else:
            message = f"column {column!r} holds {kind_of(cell)}, and no picture: correct the row"
            return Problem(origin, shortened(repr(cell)), "bytes of an image file", message)
    return Files(**maps)


def tar_samples(pattern: Place, parts: Parts, where: str, tars: Tars) -> Iterator[Files | Problem]:
    """Yield the samples of tars: consecutive members whose names agree up to the first dot.

    A picture is named ``tar:member``.

    Raises:
        UserError: a tar cannot be read (the error names the last member read), or none of its
            members has one of the endings.
    """
    endings = {
        part: [ending.strip(". ").lower() for ending in names.split(";")]
        for part, names in parts.named().items()
    }
    for place in files(pattern, where):
        check_file(place, where)
        any_sample = False
        for name, members in _samples(place, {*chain.from_iterable(endings.values())}, tars):
            any_sample = True
            yield _sample(f"{place}:{name}", members, endings)
        if not any_sample:
            wanted = ", ".join(f".{ending}" for ending in endings["image"])
            message = f"this tar has no member that ends in {wanted}: set {where}.image"
            raise user_error(str(place), message, accepted="samples such as 0001.jpg, 0001.cls")


def _sample(
    origin: str, members: Mapping[str, Member], endings: Mapping[str, Sequence[str]]
) -> Files | Problem:
    parts: dict[str, Any] = {}
    for part, names in endings.items():
        member = next((members[name] for name in names if name in members), None)
        if member is None:
            message = f"this sample has no member for {part}: add it, or take the sample out"
            there = ", ".join(f".{ending}" for ending in members)
            accepted = " or ".join(f".{name}" for name in names)
            return Problem(origin, there, accepted, message)
        if part != "category":
            parts[part] = member
            continue
        text = member.open().read().decode("ascii", "replace").strip()
        if not (text.isascii() and text.isdecimal()):
            message = "the category is no whole number from 0: correct the member"
            return Problem(str(member), shortened(repr(text)), "a whole number", message)
        parts[part] = int(text)
    return Files(**parts)


def _samples(place: Place, wanted: set[str], tars: Tars) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield the key of each sample and its members by ending; other endings are left out."""
    name, members, last = "", dict[str, Member](), ""
    try:
        opened, within = tars.open(place)
        with tarfile.open(fileobj=opened.file, mode="r:") as tar:
            for each in tar:
                last = each.name
                key, ending = _split(each.name)
                if not each.isfile() or ending not in wanted or not key:
                    continue
                if key != name and members:
                    yield name, members
                    members = {}
                full_name, name = f"{place}:{each.name}", key
                members[ending] = Member(full_name, within, each.offset_data, each.size)
            # tarfile stops without an error at a truncated or broken header.
            opened.file.seek(tar.offset)
            if opened.file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("what follows is no member, and no end of a tar")
    except (*BROKEN, tarfile.TarError) as error:
        after = f" after its member {last}" if last else ""
        message = f"this tar cannot be read{after}: {brief(error)}"
        raise user_error(str(place), message, accepted="a readable, whole tar") from error
    if members:
        yield name, members


def _opened(path: Path) -> Container:
    return Container(path.open("rb"))


def _split(name: str) -> tuple[str, str]:
    """Split a name into key and ending as WebDataset does: ``a/0001`` and ``seg.png``.

    The key of a hidden file is empty."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return (folder + slash + key if key else ""), ending.lower()
