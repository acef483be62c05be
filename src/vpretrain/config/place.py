"""A recipe key that names files: a path, a pattern, or a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import InstanceOf, PlainSerializer, WrapValidator
from pydantic.functional_validators import ModelWrapValidatorHandler

from vpretrain.system.locations import Remote, is_url


def _place(value: Any, path_of: ModelWrapValidatorHandler[Path]) -> Path | Remote:
    if isinstance(value, Remote):
        return value
    return Remote(value) if isinstance(value, str) and is_url(value) else path_of(value)


FilePlace = Annotated[
    Path | InstanceOf[Remote], WrapValidator(_place), PlainSerializer(str, when_used="json")
]
"""Text with a scheme (``s3://bucket/a.jsonl``) is a URL, other text is a path."""
