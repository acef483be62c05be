"""Pictures within larger files: columns of tables, and members of WebDataset's tars.

Where the bytes of a picture lie is noted when the files are read, and they are decoded when they
are drawn. Members of a local tar stay where they are; pictures of a table, and tars that are
compressed or at a URL, are laid down once in a temporary file (where ``$TMPDIR`` says) that is gone
with the process.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from vpretrain.system.errors import Problem, brief, kind_of, shortened, user_error
from vpretrain.system.located import Place, check_file, files
from vpretrain.system.tables import BROKEN, decompressed, kind_by_name, readable, records
from vpretrain.vision.data.decoding import Container, Member
from vpretrain.vision.data.files import Files

PREFIX = "vpretrain-pictures-"
_ROWS_PER_READ = 16  # of a table with pictures


@dataclass(frozen=True)
class Parts:
    """Where the parts of a sample are: columns of a table, or what names of members end in (several
    with semicolons between, the first that a sample has); None: it has no such part."""

    image: str
    labels: str | None = None
    depth: str | None = None
    category: str | None = None

    def named(self) -> dict[str, str]:
        """Those that there are."""
        return {part: name for part, name in vars(self).items() if name is not None}


class Laid:
    """Bytes one after the other in a temporary file without a name."""

    def __init__(self) -> None:
        self._within = Container(tempfile.TemporaryFile(prefix=PREFIX))  # noqa: SIM115
        self._end = 0

    def member(self, name: str, content: bytes) -> Member:
        """Adds bytes; ``OSError`` if the disk is full."""
        self._within.file.write(content)
        self._within.file.flush()
        start, self._end = self._end, self._end + len(content)
        return Member(name, self._within, start, len(content))


def of_tables(pattern: Place, kind: str, parts: Parts, where: str) -> Iterator[Files | Problem]:
    """The samples of tables, a row each, named ``file:row``.

    A picture is bytes of an image file, or as ``datasets`` has it: ``{bytes, path}``, where the
    path counts (relative to the table's folder) if there are no bytes.

    Raises:
        UserError: a file cannot be read, is of another kind, or lacks a column.
    """
    laid = Laid()
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
                    yield _row(cells, f"{place}:{number}", place, parts, laid)


def _row(
    cells: Mapping[str, Any], origin: str, place: Place, parts: Parts, laid: Laid
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
            maps[part] = laid.member(name, content)
        elif isinstance(path, str) and isinstance(place, Path):
            maps[part] = place.parent / path
        else:
            message = f"column {column!r} holds {kind_of(cell)}, and no picture: correct the row"
            return Problem(origin, shortened(repr(cell)), "bytes of an image file", message)
    return Files(**maps)


def of_tars(pattern: Place, parts: Parts, where: str) -> Iterator[Files | Problem]:
    """The samples of tars: consecutive members whose names agree up to the first dot.

    A sample is named ``tar:member``.

    Raises:
        UserError: a tar cannot be read from a place on, which is named.
    """
    endings = {
        part: [ending.strip(". ").lower() for ending in names.split(";")]
        for part, names in parts.named().items()
    }
    for place in files(pattern, where):
        check_file(place, where)
        found = False
        for name, members in _samples(place, {*chain.from_iterable(endings.values())}):
            found = True
            yield _sample(f"{place}:{name}", members, endings)
        if not found:
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


def _samples(place: Place, wanted: set[str]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Name and members of each sample, by how they end; members of other endings are left out."""
    name, members, last = "", dict[str, Member](), ""
    try:
        within = Container(_seekable(place))
        with tarfile.open(fileobj=within.file, mode="r:") as tar:
            for each in tar:
                last = each.name
                key, ending = _split(each.name)
                if not each.isfile() or ending not in wanted or not key:
                    continue
                if key != name and members:
                    yield name, members
                    members = {}
                said, name = f"{place}:{each.name}", key
                members[ending] = Member(said, within, each.offset_data, each.size)
            # tarfile ends in silence where a header is cut off or broken.
            within.file.seek(tar.offset)
            if within.file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("what follows is no member, and no end of a tar")
    except (*BROKEN, tarfile.TarError) as error:
        after = f" after its member {last}" if last else ""
        message = f"this tar cannot be read{after}: {brief(error)}"
        raise user_error(str(place), message, accepted="a whole tar: copy it again") from error
    if members:
        yield name, members


def _seekable(place: Place) -> IO[bytes]:
    """A local tar itself; of a compressed or remote one a copy without a name."""
    if isinstance(place, Path) and place.suffix == ".tar":
        return place.open("rb")
    copy: IO[bytes] = tempfile.TemporaryFile(prefix=PREFIX)  # noqa: SIM115
    try:
        with decompressed(place) as file:
            shutil.copyfileobj(file, copy)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy


def _split(name: str) -> tuple[str, str]:
    """``a/0001.seg.png`` is ``a/0001`` and ``seg.png``, as in WebDataset; hidden files are none."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return (folder + slash + key if key else ""), ending.lower()
