"""Locates and opens files by path, pattern, or URL (through fsspec)."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

from vpretrain.system.errors import UserError, abbreviated, brief, user_error

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # no drive letter
_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Remote:
    """A file that fsspec reads: ``hf://datasets/OWNER/NAME/a.parquet``, ``s3://bucket/a.jsonl.gz``,
    ``https://...``.

    Args:
        url: with its scheme.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path, without a query."""
        return self.url.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The file name's extension, with the dot."""
        return Path(self.name).suffix

    @property
    def is_pattern(self) -> bool:
        """Whether it may match several files (``*`` or ``[``); never for http and https
        addresses.
        """
        return not self.url.startswith("http") and any(sign in self.url for sign in "*[")

    def open(self) -> io.BufferedReader:
        """Opens the file, without decompression.

        Raises:
            UserError: the package for this scheme is not installed, or fsspec does not know the
                scheme.
            OSError: it cannot be read; later reads raise only this.
        """
        import fsspec

        with _explained(self.url):
            file = fsspec.open(self.url, "rb").open()
        return io.BufferedReader(_Raw(file), _BUFFER_BYTES)


Place = Path | Remote


def is_url(text: str) -> bool:
    """Returns whether the text begins with a scheme such as ``s3://``."""
    return _URL.match(text) is not None


def under(root: Path, place: Place) -> Place:
    """Returns a path relative to the root; a URL is returned as it is."""
    return place if isinstance(place, Remote) else root.expanduser() / place.expanduser()


def opened(place: Place) -> io.BufferedReader:
    """Opens a file in binary mode, without decompression."""
    return place.open() if isinstance(place, Remote) else place.open("rb")


def files(pattern: Place, where: str) -> list[Place]:
    """Returns the file at this path or URL, or all files that match it as a pattern.

    A local pattern (``*``, ``?``, ``[``, ``**``) applies only if no file has that name. As in a
    shell, a name that begins with a dot is matched only by a part of the pattern that does too.
    Matches are sorted, and files reached through several links are listed once. Braces expand to
    several patterns: ``*.{md,txt}``, ``{00..31}.tar``. For a folder saved by ``datasets``
    (``save_to_disk``) the result is its Arrow files, in its order.

    Raises:
        UserError: nothing matches; ``where`` is the dotted recipe key of the section.
    """
    spelled = _spelled(str(pattern))
    if len(spelled) > 1 and not (isinstance(pattern, Path) and pattern.exists()):
        each = (Remote(one) if isinstance(pattern, Remote) else Path(one) for one in spelled)
        return list(dict.fromkeys(chain.from_iterable(files(one, where) for one in each)))
    if isinstance(pattern, Remote):
        return list(_matching(pattern, where)) if pattern.is_pattern else [pattern]
    if (pattern / "state.json").is_file():
        return _saved(pattern, where)
    if pattern.exists() or not any(sign in str(pattern) for sign in "*?["):
        return [pattern]  # reading it reports what is wrong with it
    plain = (each for each in pattern.parents if not any(sign in str(each) for sign in "*?["))
    fixed = next(plain)
    below = fixed.glob(str(pattern.relative_to(fixed)))
    matches = sorted(path for path in below if _is_meant(path) and not _is_hidden(path, pattern))
    if not matches:
        message, there = "no file matches this pattern: correct it", _there(fixed, pattern.suffix)
        raise user_error(f"{where}.path", message, value=str(pattern), accepted=there)
    once: dict[str, Path] = {}
    for path in matches:
        once.setdefault(os.path.realpath(path), path)
    return list(once.values())


def _is_meant(path: Path) -> bool:
    """Returns whether a pattern includes a path: files and broken links, not folders.

    Broken links are rejected on reading.
    """
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_hidden(path: str | Path, pattern: str | Path) -> bool:
    """Returns whether a part of a match begins with a dot that no part of the pattern gives."""
    given = [part for part in Path(pattern).parts if part.startswith(".")]
    dotted = (part for part in Path(path).parts if part.startswith("."))
    return any(not any(fnmatch(part, each) for each in given) for part in dotted)


def check_file(place: Place, where: str) -> None:
    """Rejects a local path that is not a file; URLs are checked when they are opened.

    Raises:
        UserError: it is not a file.
    """
    if isinstance(place, Remote) or place.is_file():
        return
    accepted = _there(place.parent, place.suffix)
    if splits := sorted(each.parent.name for each in place.glob("*/state.json")):
        message = "this folder holds several data sets: name the folder of one"
        accepted = ", ".join(str(place / split) for split in splits)
    elif place.is_dir():
        message = "this is a folder: name a file in it, or all of them with a pattern (*)"
        accepted = _there(place, place.suffix or ".jsonl")
    elif place.is_symlink():
        message = "this link leads nowhere, or in a circle: correct it, or name the file itself"
    elif place.exists():
        message = "this is no ordinary file: name one"
    elif place.parent.is_dir():
        message = "there is no such file: correct the path, or make the file"
    else:
        start = Path.cwd()
        message = f"there is no such file, nor its folder: correct the path (it starts at {start})"
    raise user_error(f"{where}.path", message, value=str(place), accepted=accepted)


class _Raw(io.RawIOBase):
    """Wraps an fsspec file so that all read errors are ``OSError``.

    Every backend has its own exceptions.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise OSError(brief(error)) from error
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return int(self._file.seek(offset, whence))
        except Exception as error:
            raise OSError(brief(error)) from error

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def _spelled(pattern: str) -> list[str]:
    """Expands braces: ``a-{00..02}.tar`` gives three names, ``{a,b}.tar`` two."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    first, last, names = braces.groups()
    if names is None:
        options = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    else:
        options = names.split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for option in options for name in _spelled(before + option + after)]


def _matching(pattern: Remote, where: str) -> Iterator[Remote]:
    import fsspec

    try:
        with _explained(pattern.url):
            system, path = fsspec.core.url_to_fs(pattern.url)
            names = sorted(name for name in system.glob(path) if not _is_hidden(name, path))
    except OSError as error:
        message = f"this place cannot be searched: {error}"
        raise user_error(f"{where}.path", message, value=pattern.url) from error
    if not names:
        accepted = "a pattern with a file or more"
        message = "no file matches this pattern: correct it"
        raise user_error(f"{where}.path", message, value=pattern.url, accepted=accepted)
    yield from (Remote(system.unstrip_protocol(name)) for name in names)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    scheme = url.partition("://")[0]
    try:
        yield
    except ImportError as error:
        # fsspec says which: "Install s3fs to access S3"
        package = re.search(r"[Ii]nstall ['\"]?([\w.\[\]-]+)", str(error))
        needed = package.group(1) if package else (error.name or scheme)
        message = f"{scheme}:// is read by a package that is not installed: pip install {needed}"
        accepted = "a local path, or that package"
        raise user_error(url, message, accepted=accepted) from error
    except UserError:
        raise
    except Exception as error:
        if "Protocol not known" in str(error):
            message = f"there is no place of the kind {scheme}://: correct it"
            accepted = "a path, or a URL that fsspec reads (hf://, s3://, gs://, https://)"
            raise user_error(url, message, accepted=accepted) from error
        raise OSError(f"{url}: {brief(error)}") from error


def _saved(folder: Path, where: str) -> list[Place]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / each["filename"] for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"the state.json of this folder names no data files: {brief(error)}"
        accepted = "a folder that save_to_disk of `datasets` wrote"
        raise user_error(f"{where}.path", message, value=str(folder), accepted=accepted) from error


def _there(folder: Path, ending: str) -> str:
    if not folder.is_dir():
        return f"a file in a folder that exists; {folder} does not"
    entries = (each for each in folder.iterdir() if each.is_file() and each.suffix == ending)
    names = sorted(entry.name for entry in entries)
    if not names:
        missing = f"*{ending}" if ending else "file without an ending"
        return f"a file that is there (no {missing} is in {folder})"
    return f"one of those in {folder}: {abbreviated(names, 10)}"
