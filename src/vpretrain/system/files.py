"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vpretrain.system.errors import user_error

MOST_BYTES = 2**26
"""Of a file of results."""


@contextmanager
def replacing(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """A place beside ``path`` to write to, which takes ``path``'s place when the block ends.

    What was there is left alone, and nothing left behind, where the block raises.

    Args:
        path: of a file or a folder; its parent is made.
        flush: whether it is on the disk, not only in the system's cache, when this returns.
    """
    scratch = scratch_beside(path)
    remove(scratch)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
        put_in_place(scratch, path, flush=flush)
    except BaseException:
        remove(scratch)
        raise


def scratch_beside(path: Path) -> Path:
    """Where ``path`` is written before it is whole."""
    return path.with_name(f".{path.name}.partial")


def put_in_place(scratch: Path, path: Path, *, flush: bool = False) -> None:
    """Puts a whole file or folder where ``path`` was, or will be.

    Raises:
        UserError: a folder stands where a file belongs.
    """
    if path.is_dir() and not scratch.is_dir():
        message = "a folder stands where this file belongs: remove it, and give the command again"
        raise user_error(str(path), message)
    if flush:
        for each in (*scratch.iterdir(), scratch) if scratch.is_dir() else (scratch,):
            _flush(each)
    if scratch.is_dir():
        remove(path)
    scratch.replace(path)
    if flush:
        _flush(path.parent)


def writable_file(path: Path, what: str) -> None:
    """Refuses a place where no file can be.

    Args:
        path: given as ``--out``.
        what: is to be written, for the message: ``an HTML file``.

    Raises:
        UserError: it is a folder, or below a file.
    """
    if path.is_dir():
        message = "this is a folder; name a file in it"
        raise user_error("--out", message, value=str(path), accepted=what)
    if blocked := [place for place in path.parents if place.exists() and not place.is_dir()]:
        message = f"{blocked[0]} is a file; name a place in a folder"
        raise user_error("--out", message, value=str(path))


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 so that the file is there whole or not at all."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is there whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not whole, not text, or longer or nested deeper than any result.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it; nothing is not an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
