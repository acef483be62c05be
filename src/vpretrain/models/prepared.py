"""Where checkpoints that a recipe describes are kept, and how they come there: whole, or not at
all.
"""

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
    """``$VPRETRAIN_CACHE``, or ``~/.cache/vpretrain``."""
    return Path(os.environ.get("VPRETRAIN_CACHE") or Path.home() / ".cache" / "vpretrain")


def cache_path(description: Any) -> Path:
    """The folder in the cache for what is made of ``description``, anything that JSON can say."""
    return (
        cache_folder()
        / "prepared"
        / hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    )


def is_model(folder: Path) -> bool:
    """Whether there is an ordinary model folder."""
    return (folder / "config.json").is_file()


def made_once(folder: Path, make: Callable[[], Path]) -> Path:
    """The model folder in the cache, made where it is missing, by one process for all that ask."""
    if not is_model(folder):
        with one_at_a_time(folder.with_suffix(".lock"), "making this learner"):
            if not is_model(folder):  # it was not made by the process that was waited for
                make()
    return folder


def section_of(prepare: SectionT | None) -> SectionT:
    """``learner.prepare`` of a recipe; a :class:`~vpretrain.system.errors.UserError` where there is
    none.
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
    """A scratch folder that takes the place of ``out`` when the block ends without an error.

    Raises:
        UserError: something that is no model is there already.
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
