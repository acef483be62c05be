"""A group of keys of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    """A group of keys: unknown keys are refused, values are never coerced, numbers are finite.

    A whole number is a number. Python code that builds a section gives the exact types (a tuple, no
    list; a Path, no text); :func:`load` reads lists as tuples and text as paths."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _can_be_looked_up(cls, value: Any) -> Any:
        """A path that the system cannot even look for is refused here, once for all sections."""
        if isinstance(value, Path):
            look_up(value)
        return value


def look_up(path: Path) -> None:
    """Raises ValueError where the system refuses a path as such: a name of 300 letters, a home of
    nobody, a zero byte."""
    try:
        path.expanduser().exists()
        if "\0" in str(path):
            raise ValueError("a zero byte is no part of a path; remove it")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"the system cannot look up this path: {reason}") from None
