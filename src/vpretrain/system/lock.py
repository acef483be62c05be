"""One writer a folder: two commands on one results folder would mix their records."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpretrain.system.errors import user_error

PID_FILE = ".writer"


@contextmanager
def writing(folder: Path, key: str = "--out") -> Iterator[None]:
    """Within this block no other process that asks may write to the folder, which is made.

    The system holds the lock on the open folder and lets go of it when the process ends, however it
    ends. On file systems that know no locks nobody is refused.

    Args:
        folder: made if missing.
        key: what named it, for the message.

    Raises:
        UserError: another process is writing there; with its number.
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


def _writer(folder: Path) -> str:
    try:
        return f" (process {int((folder / PID_FILE).read_text(encoding='utf-8'))})"
    except (OSError, ValueError):
        return ""
