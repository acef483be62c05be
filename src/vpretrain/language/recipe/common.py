"""Types of values that several sections use."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

Share = Annotated[float, Field(ge=0, le=1)]


def one_group(pattern: str) -> str:
    """Returns the pattern; ``ValueError`` unless it is a regular expression with one group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"this is no regular expression: {error}") from None
    if groups != 1:
        raise ValueError("the expression needs exactly one group, around the answer")
    return pattern


Answer = Annotated[str, AfterValidator(one_group)]
"""A regular expression with one group that finds the answer in a solution; its last match counts.
"""
