"""``metrics.jsonl``: one record a line."""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any, Self

from vpretrain.system.files import remove

log = logging.getLogger(__name__)


class Records:
    """Appends records to a file, which is first cut back to where a run goes on from.

    Records that are gone or broken are logged, and no more: they are worth less than the run.

    Args:
        path: made if missing, with its folder.
        kept: how many of its records came before; fewer are kept where they are gone or broken.

    Attributes:
        kept: how many were kept in fact.
        last: the last of them; None without one.
    """

    def __init__(self, path: Path, *, kept: int = 0) -> None:
        self.last: dict[str, Any] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            remove(path)
        with path.open("ab+") as file:
            file.seek(0)
            end = count = 0
            for line in islice(file, kept):
                if (record := _record(line)) is None:
                    break
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
        self._file = path.open("ab")

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line; it outlives this process when this returns."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole and line.endswith(b"\n") else None
