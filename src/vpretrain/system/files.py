"""Atomic writing of files and folders: they are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vpretrain.system.errors import user_error

MOST_BYTES = 2**26
"""Maximum size of a results file."""
_FORMER = ".former.partial"
"""Ending of the name of a folder that is being replaced."""


@contextmanager
def replacing(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """Yields a scratch path next to ``path``, which replaces ``path`` when the block ends.

    If the block raises, ``path`` is left unchanged and the scratch path is removed.

    Args:
        path: of a file or a folder; its parent is created.
        flush: whether to flush the data to disk, not only to the system's cache, before returning.
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
    """Returns the path at which ``path`` is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def put_in_place(scratch: Path, path: Path, *, flush: bool = False) -> None:
    """Moves a complete file or folder to ``path``, replacing what is there.

    Raises:
        UserError: a folder is in the place of a file.
    """
    if path.is_dir() and not scratch.is_dir():
        message = "a folder stands where this file belongs: remove it, and give the command again"
        raise user_error(str(path), message)
    for each in (*scratch.rglob("*"), scratch):
        _allow_readers(each)
        if flush:
            _flush(each)
    if path.is_dir():
        # A folder cannot be replaced in one call, and removing a large one first takes long: a
        # process killed meanwhile would leave neither the old nor the new one.
        former = path.with_name(f".{path.name}{_FORMER}")
        remove(former)
        path.rename(former)
        try:
            scratch.replace(path)
        except BaseException:
            former.rename(path)
            raise
        with suppress(OSError):  # on NFS a folder with an open file cannot be removed
            remove(former)
    else:
        if scratch.is_dir():
            remove(path)
        scratch.replace(path)
    if flush:
        _flush(path.parent)


def tidy(folder: Path) -> None:
    """Removes what killed processes left in a folder.

    A folder that was moved away, and whose replacement was not there yet, is put back.
    """
    for former in folder.glob(f".*{_FORMER}"):
        path = folder / former.name.removeprefix(".").removesuffix(_FORMER)
        if not path.exists():
            former.rename(path)
    for scratch in folder.glob(".*.partial"):
        remove(scratch)


def _allow_readers(path: Path) -> None:
    """Gives a file that its owner alone may read, as safetensors makes them, the permissions of
    other new files; file systems without permissions keep theirs."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode) or stat.S_IMODE(mode) != 0o600:
        return
    # Reading the umask would set it for a moment, also for other threads that write files.
    probe = path.with_name(".mode.partial")
    with suppress(OSError):
        probe.touch()
        usual = stat.S_IMODE(probe.stat().st_mode)
        probe.unlink()
        if usual != 0o600:
            path.chmod(usual)


def writable_file(path: Path, what: str) -> None:
    """Rejects a path at which no file can be written.

    Args:
        path: given as ``--out``.
        what: what will be written, for the message: ``an HTML file``.

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
    """Writes a UTF-8 file atomically."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Returns the contents of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is incomplete, not text, larger than :data:`MOST_BYTES`, or nested too
            deeply.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def remove(path: Path) -> None:
    """Removes a file, or a folder with its contents; a missing path is not an error."""
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
