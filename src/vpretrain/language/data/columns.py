"""Makes a row of text from the columns of a table, and reports unusable cells."""

from __future__ import annotations

import difflib
import json
import math
import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from vpretrain.language.data.rows import Row
from vpretrain.system.errors import Problem, kind_of, shortened

_HALF_PAIR = re.compile("[\ud800-\udfff]")  # lone surrogates: json accepts them, tokenizers do not
NO_CHARACTER = "half of a surrogate pair, no character"


def is_unicode(text: str) -> bool:
    """Whether a text holds characters alone, and no half of a surrogate pair."""
    return text.isascii() or not _HALF_PAIR.search(text)


def template_pieces(template: str) -> list[tuple[str, str | None]]:
    """Splits a template into pairs of literal text and the field after it: ``"Q: {q}"`` is
    ``[("Q: ", "q")]``.

    A field is a plain column name, without attribute lookup, conversion or format specification.
    ``{{`` and ``}}`` are literal braces.

    Raises:
        ValueError: the template has no field, or braces hold anything but a column name.
    """
    pieces: list[tuple[str, str | None]] = []
    for literal, field, form, conversion in string.Formatter().parse(template):
        if field == "" or form or conversion:
            message = "between braces stands the name of a column and nothing else"
            raise ValueError(f"{message}: {template!r}")
        pieces.append((literal, field))
    if not any(field for _, field in pieces):
        example = "'Question: {question}\\nAnswer:'"
        raise ValueError(f"the template {template!r} names no column; write, say, {example}")
    return pieces


def _fields(pieces: list[tuple[str, str | None]]) -> list[str]:
    return [field for _, field in pieces if field is not None]


@dataclass(frozen=True)
class Filter:
    """Keeps or drops rows of a table by the value of one column.

    Args:
        column: the column.
        values: strings, numbers or booleans to compare its value with.
        kept: if true, only rows with one of the values are kept; else only rows with none of them.
    """

    column: str
    values: tuple[object, ...]
    kept: bool

    def keeps(self, cells: Mapping[str, object]) -> bool:
        """Whether a row is kept. A row without the column is, so that it is reported later."""
        return self.column not in cells or (cells[self.column] in self.values) == self.kept


@dataclass(frozen=True)
class Columns:
    """The columns of a row: ``text``, or ``solution`` with one of ``prompt`` and ``template``.

    Args:
        source: the rows' :attr:`Row.source`.
        where: dotted recipe key of the section that names the columns, for messages.
        text, prompt, solution: names of columns; see :class:`Row`.
        template: template of the prompt, with column names in braces.
        separator: text between prompt and solution.
        instruction: template around the prompt, with the field ``{prompt}``; empty for none.
        filters: filters that a row has to pass.
    """

    source: str
    where: str
    text: str | None = None
    prompt: str | None = None
    solution: str | None = None
    template: str | None = None
    separator: str = ""
    instruction: str = ""
    filters: tuple[Filter, ...] = ()

    def keeps(self, cells: Mapping[str, object]) -> bool:
        """Whether a row passes all filters."""
        return all(each.keeps(cells) for each in self.filters)

    @cached_property
    def read(self) -> dict[str, str]:
        """All required columns, each with the recipe key that names it."""
        return {each.column: f"where.{each.column}" for each in self.filters} | self.named

    @cached_property
    def named(self) -> dict[str, str]:
        """The columns of a row's content, each with the recipe key that names it."""
        roles = {"text": self.text, "prompt": self.prompt, "solution": self.solution}
        fields = dict.fromkeys(_fields(self._pieces), "template")
        return fields | {column: role for role, column in roles.items() if column is not None}

    @cached_property
    def _pieces(self) -> list[tuple[str, str | None]]:
        return [] if self.template is None else template_pieces(self.template)

    def missing(self, there: Collection[str], origin: str) -> Problem | None:
        """The problem of the first required column that is not among ``there``, if there is one."""
        column = next((column for column in self.read if column not in there), None)
        if column is None:
            return None
        near = difflib.get_close_matches(column, there, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        key = f"{self.where}.{self.read[column]}"
        message = f"there is no column {column!r}{hint}: set {key} to one that is there"
        accepted = ", ".join(map(repr, there)) or "none: the row has no columns"
        return Problem(origin, repr(column), accepted, message)

    def row(self, cells: Mapping[str, object], origin: str) -> Row | Problem:
        """The row of these cells, or the first problem with them."""
        if self.filters and (problem := self.missing(cells, origin)):
            return problem
        texts: dict[str, str] = {}
        for column, role in self.named.items():
            cell = cells.get(column)
            if type(cell) is not str or not _usable(cell, blank=role == "template"):
                return self.missing(cells, origin) or _flaw(cell, column, role, origin)
            texts[column] = cell
        if self.text is not None:
            return Row("", texts[self.text], origin, self.source)
        assert self.solution is not None
        if self.prompt is not None:
            question = prompt = texts[self.prompt]
        else:
            pieces = self._pieces
            prompt = "".join(text + (texts[field] if field else "") for text, field in pieces)
            question = " ".join(texts[field] for field in _fields(self._pieces))
        if self.instruction:
            prompt = self.instruction.replace("{prompt}", prompt)
        return solved(question, prompt + self.separator, texts[self.solution], origin, self.source)


def solved(question: str, prompt: str, solution: str, origin: str, source: str) -> Row:
    """A row of prompt and solution; its question is stored only if it differs from the prompt."""
    alone = question.strip() == prompt.strip()
    return Row(prompt, solution, origin, source, "" if alone else question)


def _usable(cell: str, *, blank: bool) -> bool:
    if not blank and (cell == "" or cell.isspace()):
        return False
    return is_unicode(cell)


def _flaw(cell: object, column: str, role: str, origin: str) -> Problem:
    if not isinstance(cell, str):
        absent = cell is None or (isinstance(cell, float) and math.isnan(cell))
        fix = "fill it, or take the row out" if absent else "write it as a string"
        message = f"column {column!r} is {kind_of(cell)}, not text: {fix}"
        return Problem(origin, shortened(json.dumps(cell, default=repr)), "a string", message)
    if not cell.strip():
        message = f"column {column!r}, the {role}, is empty: fill it, or take the row out"
        return Problem(origin, repr(cell), "text that is not only white space", message)
    message = f"column {column!r} holds {NO_CHARACTER}: correct the row"
    return Problem(origin, shortened(ascii(cell)), "Unicode text", message)
