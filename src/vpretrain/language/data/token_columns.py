"""Rows that are already tokenised, in the form of ``transformers`` tokenizers and collators."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vpretrain.language.data.columns import Columns
from vpretrain.language.data.rows import Row, Tokens
from vpretrain.system.errors import Problem, kind_of, shortened

IGNORED = -100
"""The label of a token that is not predicted."""


@dataclass(frozen=True)
class TokenColumns(Columns):
    """The columns of token ids and of their labels; see :class:`Columns`.

    Args:
        tokens: column of token ids.
        labels: column of labels (not shifted), :data:`IGNORED` where the token is not predicted;
            None predicts all tokens.
    """

    tokens: str = "input_ids"
    labels: str | None = None

    @cached_property
    def named(self) -> dict[str, str]:
        of_labels = {} if self.labels is None else {self.labels: "labels"}
        return {self.tokens: "tokens"} | of_labels

    def row(self, cells: Mapping[str, object], origin: str) -> Row | Problem:
        if problem := self.missing(cells, origin):
            return problem
        ids = _whole_numbers(cells[self.tokens], self.tokens, origin)
        if isinstance(ids, Problem):
            return ids
        if min(ids, default=-1) < 0 or len(ids) < 2:
            message = f"column {self.tokens!r} holds no document: correct it, or take the row out"
            accepted = "two token ids or more, none below 0"
            return Problem(origin, shortened(repr(list(ids))), accepted, message)
        if self.labels is None:
            return token_row(ids, bytes([1]) * len(ids), origin, self.source)
        labels = _whole_numbers(cells[self.labels], self.labels, origin)
        if isinstance(labels, Problem):
            return labels
        return _labelled(ids, labels, origin, self.source)


def token_row(ids: Sequence[int], predicted: bytes, origin: str, source: str) -> Row:
    """A tokenised row, whose prompt and text are the ids in decimal, to recognise copies by."""
    first = predicted.index(1)
    prompt, text = (" ".join(map(str, part)) for part in (ids[:first], ids[first:]))
    return Row(prompt, text, origin, source, tokens=Tokens(array("i", ids).tobytes(), predicted))


def _labelled(ids: Sequence[int], labels: Sequence[int], origin: str, source: str) -> Row | Problem:
    if len(labels) != len(ids):
        message = "there are not as many labels as tokens: correct the row"
        return Problem(origin, f"{len(labels)} labels", f"{len(ids)} labels", message)
    predicted = bytes(label != IGNORED for label in labels)
    for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (IGNORED, token):
            message = f"the label at place {at + 1} is another token than the one that stands there"
            message += ": labels are not shifted"
            return Problem(origin, str(label), f"{token}, or {IGNORED}", message)
    if not any(predicted[1:]):
        message = "no token of this row is predicted: label some, or take the row out"
        return Problem(origin, "no label", f"labels that are not all {IGNORED}", message)
    return token_row(ids, predicted, origin, source)


def _whole_numbers(cell: Any, column: str, origin: str) -> Sequence[int] | Problem:
    values = cell.tolist() if hasattr(cell, "tolist") else cell
    most = 2**31
    if isinstance(values, list) and all(type(v) is int and -most <= v < most for v in values):
        return values
    what = "a list of something else" if isinstance(values, list) else kind_of(values)
    message = f"column {column!r} is {what}, and no list of token ids: correct the row"
    return Problem(origin, shortened(repr(values)), "a list of whole numbers", message)
