"""Reads and validates the files of saved results; each problem names file, line and fix."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from vpretrain.config.arms import Role
from vpretrain.config.yaml_places import parse
from vpretrain.system.errors import UserError, user_error
from vpretrain.system.files import MOST_BYTES

T = TypeVar("T")

_MOST_RECORD_BYTES = 2**20

EITHER = "tokens or images"
"""Unit of results that do not name theirs: of unfinished runs, and of earlier versions."""


class Measured(BaseModel):
    """A score of the untouched checkpoint."""

    value: float
    stderr: float | None = None
    n: int | None = None


class Meaning(BaseModel):
    """How to read a metric."""

    higher_is_better: bool


class Entry(BaseModel):
    """One run: what it used, and its final scores."""

    arm: str
    seed: int
    steps: int
    tokens_or_images: int
    seconds: float
    flops: float | None = None
    peak_bytes: int | None = None
    stream_digest: str | None = None
    final: dict[str, float]


class Summary(BaseModel):
    """An arm over its seeds."""

    mean: float
    std: float | None
    n: int


class Items(BaseModel):
    """The same difference over held-out items."""

    ci95: tuple[float, float]
    p: float | None = None


class Paired(BaseModel):
    """An arm against the baseline, or a control against the steered arm, over seeds."""

    difference: float
    ci95: tuple[float, float] | None
    p_holm: float | None
    verdict: Literal["better", "worse", "undecided"]
    items: Items | None = None


class Comparison(BaseModel):
    """``compare.json``."""

    recipe: str
    modality: str
    match: str
    budget: float
    unit: str = EITHER
    arms: dict[str, str]
    roles: dict[str, Role]
    metrics: dict[str, Meaning]
    step0: dict[str, Measured]
    runs: list[Entry] = Field(min_length=1)
    summary: dict[str, dict[str, Summary]]
    paired: dict[str, dict[str, Paired]]
    control_pairs: dict[str, dict[str, dict[str, Paired]]]
    environment: dict[str, Any] = {}


class Step0File(BaseModel):
    """``runs/step0.json``."""

    unit: str = EITHER
    step0: dict[str, Measured]
    metrics: dict[str, Meaning]


class RunFile(BaseModel):
    """``result.json``."""

    unit: str = EITHER
    arm: str
    steps: int
    tokens_or_images: int
    seconds: float
    step0: dict[str, float]
    final: dict[str, float]


def read_text(path: Path) -> str:
    """Returns the file's text.

    Raises:
        UserError: the file is missing, unreadable, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            message = "this file is longer than any that is written here; was it replaced?"
            raise user_error(str(path), message, accepted=f"up to {MOST_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = "this file is missing; name a folder that compare or train wrote"
        raise user_error(str(path), message) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError as error:
        line, message = error.object[: error.start].count(b"\n") + 1, "this is not text (UTF-8)"
        raise user_error(f"{path}:{line}", f"{message}; was the file damaged?") from None


def _unreadable(path: Path, error: OSError) -> UserError:
    message = f"this file cannot be read: {error.strerror}; see to its permissions"
    return user_error(str(path), message)


def read_json(path: Path, shape: type[T], fix: str) -> T:
    """Reads a JSON file and validates its shape.

    Args:
        path: of the file.
        shape: a pydantic class, or ``dict``.
        fix: advice for a file that is half-written or of another shape.

    Raises:
        UserError: names file and line.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        rows = text.splitlines()
        shown = rows[line - 1].strip()[:80] if 0 < line <= len(rows) else ""
        reason = f"the file is half-written or damaged ({getattr(error, 'msg', error)}); {fix}"
        reason = reason if text else f"the file is empty; {fix}"
        raise user_error(f"{path}:{line}", reason, value=shown, accepted="JSON") from None
    try:
        return TypeAdapter(shape).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = tuple(part for part in first["loc"] if isinstance(part, (str, int)))
        at = f"{path}:{_line_of(text, key)} {'.'.join(map(str, key))}".rstrip()
        shown = "" if first["type"] == "missing" else repr(first["input"])[:80]
        message = f"{first['msg'].lower()}; {fix}"
        raise user_error(at, message, value=shown, accepted="what compare writes") from None


def read_records(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """Reads ``metrics.jsonl``: one record per step, numbers only, by rising step.

    Of a duplicate step the last record counts.

    Args:
        path: of the file.
        notes: gets a sentence if the last line was cut off by a killed run (the line is skipped),
            and one for each skipped batch.

    Raises:
        UserError: any other line is not a record.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise _unreadable(path, error) from None
    whole = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    records: dict[float, dict[str, float]] = {}
    for number, line in whole:
        at, shown = f"{path}:{number}", line[:80].decode("utf-8", "replace")
        fix, accepted = "remove the line, or train again", "one record a line"
        try:
            if len(line) > _MOST_RECORD_BYTES:
                raise ValueError("it is too long")
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == whole[-1][0]:
                cut_off = f"The last line of {path} (line {number}) was cut off, and is not shown."
                notes.append(cut_off)
                continue
            message = f"this line is not JSON ({getattr(error, 'msg', error)}); {fix}"
            raise user_error(at, message, value=shown, accepted=accepted) from None
        if isinstance(value, dict) and "skipped" in value:
            notes.append(f"After step {value.get('step')} a batch was left out: {value['skipped']}")
            continue
        record = _numbers(value)
        needed = ("step", "tokens", "seconds")
        if lacking := [name for name in needed if not math.isfinite(record.get(name, math.nan))]:
            message = f"this record has no number for {', '.join(lacking)}; {fix}"
            accepted = "{step, tokens, seconds, ...}"
            raise user_error(at, message, value=shown, accepted=accepted)
        records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def read_yaml(path: Path) -> tuple[dict[str, Any], str]:
    """Reads ``recipe.yaml``; returns its values and its text."""
    text = read_text(path)
    value, _, _ = parse(text, lambda line: f"{path}:{line}")
    if not isinstance(value, dict):
        message = "this is no recipe; was the file cut off?"
        raise user_error(f"{path}:1", message, accepted="keys and values")
    return value, text


def _numbers(record: Any) -> dict[str, float]:
    if not isinstance(record, dict):
        return {}
    numbers = {}
    for name, value in record.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                numbers[name] = float(value)
            except OverflowError:
                numbers[name] = math.inf
    return numbers


def _line_of(text: str, key: tuple[str | int, ...]) -> int:
    """Returns the line of a key, or of its innermost ancestor in the file.

    JSON is parsed as YAML, which gives lines.
    """
    try:
        _, marks, _ = parse(text, str)
    except UserError:
        return 1
    places = (marks.get(key[:depth]) for depth in range(len(key), 0, -1))
    return int(next((place for place in places if place), "1"))
