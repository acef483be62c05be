"""``metrics.jsonl``: one record per line."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from vpretrain.system.files import remove

log = logging.getLogger(__name__)

MOST_BYTES = 2**20
"""Maximum length of a record's line; a longer one counts as broken."""


class Records:
    """Appends records to a file, which is first cut back to the point of resumption.

    Missing or broken records are only logged, because they must not stop the run.

    Args:
        path: created if missing, with its folder.
        kept: number of earlier records to keep; fewer are kept if some are missing or broken.

    Attributes:
        kept: number of records that were actually kept.
        last: the last of them; None without one.
    """

    def __init__(self, path: Path, *, kept: int = 0) -> None:
        self.last: dict[str, Any] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.is_symlink():
            remove(path)
        with path.open("ab+") as file:
            file.seek(0)
            end = count = 0
            while count < kept and (record := _record(line := file.readline(MOST_BYTES))):
                self.last, end, count = record, end + len(line), count + 1
            file.truncate(end)
        if count < kept:
            log.warning(
                "%s: of %d records %d can be read; the run goes on, and the others are left out",
                path,
                kept,
                count,
            )
        self.kept = count
        self._path, self._end, self._failed = path, end, False
        self._file = path.open("ab", buffering=0)

    def append(self, record: dict[str, Any]) -> bool:
        """Writes one line; returns whether it was written, and so outlives this process.

        Figures that are not finite become null, because JSON has no other word for them. If the
        disk is full or refuses, the line is dropped; the first such failure is logged.
        """
        strict = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        line = json.dumps(strict).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            if not self._failed:
                log.warning("%s: not written: %s; the run goes on", self._path, error.strerror)
            self._failed = True
            return False
        self._end += len(line)
        return True

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole and line.endswith(b"\n") else None
