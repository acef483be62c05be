"""The cache of checkpoints made from recipes; folders are written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vpretrain.system.errors import user_error
from vpretrain.system.files import put_in_place
from vpretrain.system.lock import one_at_a_time

SectionT = TypeVar("SectionT")


def cache_folder() -> Path:
    """Return the cache folder: ``$VPRETRAIN_CACHE``, or ``~/.cache/vpretrain``."""
    return Path(os.environ.get("VPRETRAIN_CACHE") or Path.home() / ".cache" / "vpretrain")


def cache_path(description: Any) -> Path:
    """Return the cache folder for a JSON-serialisable description of how a checkpoint is made."""
    return (
        cache_folder()
        / "prepared"
        / hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    )


def is_model(folder: Path) -> bool:
    """Whether a folder is a model folder, by its ``config.json``."""
    return (folder / "config.json").is_file()


def made_once(folder: Path, make: Callable[[], Path]) -> Path:
    """Return a model folder, made if it is missing; concurrent processes wait for the first."""
    if not is_model(folder):
        with one_at_a_time(folder.with_suffix(".lock"), "making this learner"):
            if not is_model(folder):  # not made by another process meanwhile
                make()
    return folder


def section_of(prepare: SectionT | None) -> SectionT:
    """Return ``learner.prepare`` of a recipe.

    Raises:
        UserError: the recipe has no such section.
    """
    if prepare is None:
        raise user_error(
            "learner.prepare",
            "this recipe does not say how to make its learner",
            accepted="a `prepare` section in `learner`",
        )
    return prepare


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Yield a scratch folder that replaces ``out`` when the ``with`` block ends without an error.

    Raises:
        UserError: ``out`` exists, is not empty and is not a model folder.
    """
    if out.exists() and not is_model(out) and (out.is_file() or any(out.iterdir())):
        raise user_error(
            "--out",
            "this is there already and is no model, so it is not replaced; name another folder",
            value=str(out),
            accepted="a new folder, an empty one, or that of a model",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch) / "model"
        yield folder
        put_in_place(folder, out)
