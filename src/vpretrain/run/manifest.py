"""Size and SHA-256 of a folder's files, to detect damaged or modified files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vpretrain.system.files import replacing

NAME = "manifest.json"
MODEL = "model.manifest.json"
"""Manifest of ``model/``, kept next to it in the run's folder."""


class Damaged(Exception):
    """A file differs from what was written."""


def write_manifest(folder: Path, manifest: Path | None = None) -> None:
    """Lists every file of a folder, except text for people (``.md``), which may be edited.

    Args:
        folder: with its subfolders.
        manifest: path of the list; None: :data:`NAME` in the folder.
    """
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _digest(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".md"
    }
    listed = json.dumps(files, indent=1).encode()
    checked = hashlib.sha256(listed).hexdigest().encode() + b"\n" + listed
    with replacing(manifest or folder / NAME) as scratch:
        scratch.write_bytes(checked)


def verify(folder: Path, manifest: Path | None = None) -> None:
    """Compares every file on the list with the folder.

    Raises:
        Damaged: names the file that differs, or cannot be read.
    """
    manifest = manifest or folder / NAME
    try:
        first, _, listed = manifest.read_bytes().partition(b"\n")
        if first.decode("ascii", "replace") != hashlib.sha256(listed).hexdigest():
            raise Damaged(f"{manifest.name} is not as it was written")
        files: dict[str, dict[str, Any]] = json.loads(listed)
        for name, written in files.items():
            path = folder / name
            if path.stat().st_size != written["bytes"] or _digest(path) != written["sha256"]:
                raise Damaged(f"{name} is not as it was written")
    except OSError as error:
        name = Path(error.filename or folder).name
        raise Damaged(f"{name} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{manifest.name} is no list of files") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
