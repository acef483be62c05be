"""Base class of a recipe's sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    """A group of keys: unknown keys are rejected, values are never coerced, numbers are finite.

    An integer is accepted as a float. In Python a section takes exact types (a tuple, not a list; a
    Path, not a string); :func:`load` reads lists as tuples and text as paths.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _can_be_looked_up(cls, value: Any) -> Any:
        """Rejects, for all sections, paths that the operating system cannot look up."""
        if isinstance(value, Path):
            look_up(value)
        return value


def look_up(path: Path) -> None:
    """Raises ValueError for a path that the operating system rejects as such.

    Examples: a name of 300 letters, the home of an unknown user, a zero byte.
    """
    try:
        path.expanduser().exists()
        if "\0" in str(path):
            raise ValueError("a zero byte is no part of a path; remove it")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"the system cannot look up this path: {reason}") from None
