"""Pictures that are in a set twice, or in two sets that should share none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vpretrain.system.errors import Problem, abbreviated
from vpretrain.vision.data.files import Folder
from vpretrain.vision.data.images import Picture, Pictures, Some
from vpretrain.vision.data.scenes import Scenes

_PAIRS_SHOWN = 5
_TAIL_BYTES = 4096


def leaks(where: str, pictures: Pictures, held_out: Sequence[Picture], split: str) -> list[Problem]:
    """A problem if some of the pictures are evaluated on.

    Pictures that were decoded are compared by their pixels in the file. Of a folder that is only
    decoded when drawn (a million files) a file is one of those evaluated on if both have the same
    number of bytes and the same last 4,096."""
    known = {picture.identity: picture.name for picture in held_out}
    pairs = [(name, known[key]) for name, key in identities(pictures) if key in known]
    if isinstance(pictures, Folder) and not pictures.origins:
        pairs += _same_files(pictures, held_out)
    if not pairs:
        return []
    message = (
        f"{len(pairs)} of these pictures are also in data.evaluation.{split}; take them out of one "
        "of the two"
    )
    accepted = "pictures that are not evaluated on"
    return [Problem(where, _shown(pairs), accepted, message)]


def repeats(pictures: Pictures, first: dict[str, str]) -> list[tuple[int, str, str]]:
    """Place and name of each picture of a source whose pixels came earlier, and that one's name;
    ``first`` is added to: names by identity of what came in earlier sources."""
    copies = []
    for place, (name, key) in enumerate(identities(pictures)):
        if key in first:
            copies.append((place, name, first[key]))
        first.setdefault(key, name)
    return copies


def repeats_warning(where: str, pictures: Pictures, pairs: Sequence[tuple[str, str]]) -> Problem:
    """Of copies that stay in the stream."""
    message = (
        f"{len(pairs)} of {len(pictures)} pictures are exact copies of others; "
        "data.duplicates=drop leaves them out"
    )
    return Problem(where, _shown(pairs), "", message)


def identities(pictures: Pictures) -> Iterator[tuple[str, str]]:
    """Name and :attr:`Picture.identity` of each, of scenes without rendering them; nothing of a
    folder that was never decoded."""
    if isinstance(pictures, Scenes):
        yield from ((name, name) for name in pictures.names())
    elif isinstance(pictures, Some):
        known = list(identities(pictures.pictures))
        yield from (known[place] for place in pictures.places if known)
    elif isinstance(pictures, Folder):
        names = (str(files.image) for files in pictures.files)
        yield from zip(names, pictures.origins, strict=bool(pictures.origins))
    else:
        for place in range(len(pictures)):
            yield pictures[place].name, pictures[place].identity


def _same_files(folder: Folder, held_out: Sequence[Picture]) -> Iterator[tuple[str, str]]:
    files = [Path(picture.name) for picture in held_out if Path(picture.name).is_file()]
    known = {_tail(path): str(path) for path in files}
    sizes = {path.stat().st_size for path in files}
    for path in (each.image for each in folder.files if isinstance(each.image, Path)):
        if path.stat().st_size in sizes and (tail := _tail(path)) in known:
            yield str(path), known[tail]


def _tail(path: Path) -> tuple[int, str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL_BYTES))
        return size, hashlib.sha256(file.read()).hexdigest()


def _shown(pairs: Iterable[tuple[str, str]]) -> str:
    return abbreviated((f"{a} = {b}" for a, b in pairs), most=_PAIRS_SHOWN)
