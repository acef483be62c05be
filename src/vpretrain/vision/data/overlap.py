"""Find pictures that occur twice in a set, or in two sets that must not overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vpretrain.system.errors import Problem, abbreviated, user_error
from vpretrain.vision.data.decoding import file_id, length_of
from vpretrain.vision.data.files import Files, Folder
from vpretrain.vision.data.images import Picture, Pictures, Subset
from vpretrain.vision.data.scenes import Scenes

_PAIRS_SHOWN = 5


def leaks(where: str, pictures: Pictures, held_out: Sequence[Picture], split: str) -> list[Problem]:
    """Return a problem if some of the pictures are also in the evaluation set ``held_out``.

    Pictures that were decoded are compared by the pixels in their files. In a set that is decoded
    only when drawn (a million files, or members of tars), files are compared by length in bytes and
    by their last 4,096 bytes.

    Raises:
        UserError: a file of such a set is not there.
    """
    known = {picture.identity: picture.name for picture in held_out}
    pairs = [(name, known[key]) for name, key in identities(pictures) if key in known]
    pairs += _same_files(_undecoded(pictures), held_out)
    if not pairs:
        return []
    message = (
        f"{len(pairs)} of these pictures are also in data.evaluation.{split}; take them out of one "
        "of the two"
    )
    accepted = "pictures that are not evaluated on"
    return [Problem(where, _shown(pairs), accepted, message)]


def repeats(pictures: Pictures, first: dict[str, str]) -> list[tuple[int, str, str]]:
    """Return index and name of each repeated picture of a source, and the name of the original.

    ``first`` maps the identities of pictures in earlier sources to their names; this source's
    pictures are added to it."""
    copies = []
    for place, (name, key) in enumerate(identities(pictures)):
        if key in first:
            copies.append((place, name, first[key]))
        first.setdefault(key, name)
    return copies


def repeats_warning(where: str, pictures: Pictures, pairs: Sequence[tuple[str, str]]) -> Problem:
    """Return a warning about repeated pictures that stay in the stream."""
    message = (
        f"{len(pairs)} of {len(pictures)} pictures are exact copies of others; "
        "data.duplicates=drop leaves them out"
    )
    return Problem(where, _shown(pairs), "", message)


def identities(pictures: Pictures) -> Iterator[tuple[str, str]]:
    """Yield name and :attr:`Picture.identity` of each picture.

    Scenes are not rendered for it. A folder that was never decoded yields nothing."""
    if isinstance(pictures, Scenes):
        yield from ((name, name) for name in pictures.names())
    elif isinstance(pictures, Subset):
        known = list(identities(pictures.pictures))
        yield from (known[place] for place in pictures.places if known)
    elif isinstance(pictures, Folder):
        names = (str(files.image) for files in pictures.files)
        yield from zip(names, pictures.origins, strict=bool(pictures.origins))
    else:
        for place in range(len(pictures)):
            yield pictures[place].name, pictures[place].identity


def _undecoded(pictures: Pictures) -> Sequence[Files]:
    """Return the files of a set that was never decoded, and nothing for other sets."""
    if isinstance(pictures, Subset):
        files = _undecoded(pictures.pictures)
        return [files[place] for place in pictures.places] if files else []
    return pictures.files if isinstance(pictures, Folder) and not pictures.origins else []


def _same_files(files: Sequence[Files], held_out: Sequence[Picture]) -> Iterator[tuple[str, str]]:
    known = {picture.file: picture.name for picture in held_out if picture.file is not None}
    lengths = {length for length, _ in known}
    for image in (each.image for each in files):
        try:
            same = length_of(image) in lengths and (key := file_id(image)) in known
        except OSError as error:
            message = "the picture cannot be read (a link that leads nowhere?): take it out"
            accepted = "a file, or data.on_bad_row: skip for a set with check: true"
            shown = error.strerror or str(error)
            raise user_error(str(image), message, value=shown, accepted=accepted) from error
        if same:
            yield str(image), known[key]


def _shown(pairs: Iterable[tuple[str, str]]) -> str:
    return abbreviated((f"{a} = {b}" for a, b in pairs), most=_PAIRS_SHOWN)
