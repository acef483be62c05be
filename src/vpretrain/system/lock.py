"""Locks: one writer per results folder, and one process at a time for shared preparations."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpretrain.system.errors import user_error

PID_FILE = ".writer"
log = logging.getLogger(__name__)


@contextmanager
def writing(folder: Path, key: str = "--out") -> Iterator[None]:
    """Locks a folder against other processes for the duration of the block.

    The lock is on the open folder, so the system releases it when the process ends in any way. On
    file systems without locks it has no effect.

    Args:
        folder: created if missing.
        key: the argument that named it, for the message.

    Raises:
        UserError: another process is writing there; names its process id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise user_error(
                key,
                f"another command{_writer(folder)} is writing to this folder; wait for it, stop "
                "it, or name another folder",
                value=str(folder),
            ) from None
        except OSError:  # no locks here
            pass
        (folder / PID_FILE).write_text(str(os.getpid()), encoding="utf-8")
        try:
            yield
        finally:
            (folder / PID_FILE).unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextmanager
def one_at_a_time(path: Path, what: str) -> Iterator[None]:
    """Waits until no other process is in such a block with the same ``path``; logs that it waits.

    Args:
        path: an empty lock file; created if missing, and kept.
        what: what the other process is doing, for the log line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another command is %s; waiting for it", what)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # no locks here
            pass
        yield


def _writer(folder: Path) -> str:
    try:
        return f" (process {int((folder / PID_FILE).read_text(encoding='utf-8'))})"
    except (OSError, ValueError):
        return ""
