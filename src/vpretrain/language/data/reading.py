"""Reads the rows of a recipe: which are taken, and which are held out."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b
from itertools import chain

import numpy as np

from vpretrain.language.data import sources, word_problems
from vpretrain.language.data.columns import Columns, Filter, solved
from vpretrain.language.data.formats import CHAT, FORMAT_SEPARATOR, ChatColumns, FormatColumns
from vpretrain.language.data.planted_errors import corrupt_digits
from vpretrain.language.data.row_store import StoredRows
from vpretrain.language.data.rows import Row, held_out
from vpretrain.language.data.token_columns import TokenColumns
from vpretrain.language.recipe.data import Data, Source
from vpretrain.language.recipe.rows import (
    Chatter,
    HeldOut,
    Hub,
    Rows,
    Table,
    TableFiles,
    TextFiles,
    Where,
    WordProblems,
)
from vpretrain.system.errors import Problem, UserError, user_error
from vpretrain.system.locations import Place, files, under

_PROBLEMS_SHOWN = 5


class Reader:
    """Reads rows, and records their problems and the rows that sources hold out.

    Args:
        data: the recipe's section.

    Attributes:
        problems: problems that prevent a run.
        skipped: problems of rows that ``on_bad_row: skip`` left out: for every set of rows the
            first five, and the number of the others.
        unusable: number of rows that stop the run in sets that have usable rows too.
        copies: for each source of the stream that is not generated, the number of rows that exactly
            repeat an earlier row of it.
    """

    def __init__(self, data: Data) -> None:
        self.problems: list[Problem] = []
        self.skipped: list[Problem] = []
        self.unusable = 0
        self.copies: dict[str, int] = {}
        self._root = data.root.expanduser()
        self._skip = data.on_bad_row == "skip"
        self._skip_copies = data.on_duplicate_row == "skip"
        self._separator, self._instruction = data.separator, data.instruction
        self._held_out: dict[str, StoredRows] = {}
        self._sources = {source.name: source for source in data.stream}

    def stream(self, source: Source, where: str) -> StoredRows:
        """The rows of a stream source, stored on disk; empty if there is a problem."""
        kept, digests = StoredRows(source.name), array("q")
        rows = self._kept(source, self._taken(source.rows, source.name, f"{where}.rows"))
        try:
            for row in _planted(source.rows, rows):
                kept.append(row)
                digests.append(_digest(row))
        except UserError as error:
            self.problems += error.problems
            return StoredRows(source.name)
        if isinstance(source.rows, _GENERATED):
            return kept
        first = np.unique(np.array(digests, np.int64), return_index=True)[1]
        self.copies[source.name] = len(kept) - len(first)
        if not (self._skip_copies and self.copies[source.name]):
            return kept
        return StoredRows(source.name, map(kept.__getitem__, np.sort(first).tolist()))

    def rows(self, spec: Rows, name: str, where: str) -> list[Row]:
        """The rows of any other set; empty if there is a problem. Read ``held_out`` rows after
        their source."""
        try:
            return list(_planted(spec, self._taken(spec, name, where)))
        except UserError as error:
            self.problems += error.problems
            return []

    def _kept(self, source: Source, rows: Iterable[Row]) -> Iterator[Row]:
        spec = source.held_out
        if spec is None:
            yield from rows
            return
        away = self._held_out[source.name] = StoredRows(source.name)
        for row in rows:
            if held_out(row, spec.fraction, spec.seed):
                away.append(row)
            else:
                yield row

    def _taken(self, spec: Rows, name: str, where: str) -> Iterator[Row]:
        """The rows that ``skip_rows`` and ``rows`` choose among the usable ones.

        Raises:
            UserError: after the last row, if one of them was unusable and is not to be skipped, or
                none is left.
        """
        skip, most = (0, None) if isinstance(spec, _GENERATED) else (spec.skip_rows, spec.rows)
        bad: list[Problem] = []
        good = unseen = 0
        for row in self._rows(spec, name, where):
            if isinstance(row, Row):
                good += 1
                if good > skip:
                    yield row
                if most is not None and good == skip + most:
                    break
            elif len(bad) < _PROBLEMS_SHOWN:
                bad.append(row)
            else:
                unseen += 1
        unusable = len(bad) + unseen
        if unseen:
            bad.append(Problem(where, "", "", f"{unseen} more rows are unusable"))
        if bad and not (self._skip and good):
            self.unusable += unusable if good else 0
            raise UserError(*bad)
        self.skipped += bad
        if not good:
            if isinstance(spec, Table) and spec.where:
                message = "no row passes these filters: correct their values"
                given = {
                    name: each.model_dump(exclude_none=True) for name, each in spec.where.items()
                }
                accepted = "values as the rows have them, in the same type: 1 is not '1'"
                raise user_error(f"{where}.where", message, value=given, accepted=accepted)
            message = "there are no rows: fill the file, or name another"
            raise user_error(where, message, value=_name_of(spec), accepted="at least one row")
        if good <= skip:
            where, accepted = f"{where}.skip_rows", f"0 to {good - 1}: there are {good} rows"
            raise user_error(where, "no row is left; skip fewer", value=skip, accepted=accepted)

    def _rows(self, spec: Rows, name: str, where: str) -> sources.Rows:
        if isinstance(spec, HeldOut):
            return iter(self._away(spec, where))
        if isinstance(spec, _GENERATED):
            return iter(_generated(spec, name, where, self._separator))
        if isinstance(spec, TextFiles):
            document = spec.document
            return chain.from_iterable(
                sources.text(path, name, where, document=document)
                for path in self._files(spec.path, where)
            )
        columns = self._columns(spec, name, where)
        if isinstance(spec, Hub):
            return sources.hub(spec, columns)
        return chain.from_iterable(
            sources.table(path, spec.kind, columns) for path in self._files(spec.path, where)
        )

    def _columns(self, spec: TableFiles | Hub, name: str, where: str) -> Columns:
        filters = tuple(
            Filter(column, _values(each, spec.kind), each.one_of is not None)
            for column, each in (spec.where or {}).items()
        )
        columns = columns_of(
            spec, name, where, separator=self._separator, instruction=self._instruction
        )
        return replace(columns, filters=filters)

    def _files(self, path: Place, where: str) -> list[Place]:
        return files(under(self._root, path), where)

    def _away(self, spec: HeldOut, where: str) -> StoredRows:
        if spec.source not in self._held_out:
            message = "this source holds nothing out: give it a `held_out`, or name another"
            if spec.source not in self._sources:
                message = "the stream has no source of this name: correct it"
            accepted = ", ".join(self._held_out) or "a source of data.stream with a `held_out`"
            raise user_error(f"{where}.source", message, value=spec.source, accepted=accepted)
        if not self._held_out[spec.source]:
            message = "by its fraction and seed this source holds out no row: raise the fraction"
            where = f"data.stream.{list(self._sources).index(spec.source)}.held_out.fraction"
            away, accepted = self._sources[spec.source].held_out, "a larger fraction, below 1"
            raise user_error(where, message, value=away.fraction if away else "", accepted=accepted)
        return self._held_out[spec.source]


def columns_of(
    spec: Table, name: str, where: str, *, separator: str, instruction: str | None
) -> Columns:
    """The columns of a table's rows, without filters.

    Args:
        spec: the recipe's section.
        name: the rows' source.
        where: the section's dotted key, for messages.
        separator: ``data.separator``.
        instruction: ``data.instruction``.
    """
    named = (spec.text, spec.prompt, spec.solution, spec.template)
    renamed = spec.columns or {}
    if spec.tokens is not None:
        return TokenColumns(name, where, tokens=spec.tokens, labels=spec.labels)
    if spec.format is None:
        around = "" if spec.text is not None else instruction or ""
        return Columns(name, where, *named, separator, around)
    if spec.format == CHAT:
        messages = renamed.get("messages", "messages")
        return ChatColumns(name, where, *named, messages=messages, tools=renamed.get("tools"))
    return FormatColumns(
        name, where, separator=FORMAT_SEPARATOR, format=spec.format, renamed=renamed
    )


def _values(where: Where, kind: str) -> tuple[object, ...]:
    """The values of a filter in the types of a table of this kind: strings in CSV and TSV, a
    boolean in each way in which exporters write it (``true``, ``True``, ``TRUE``)."""
    values = where.one_of or where.none_of or ()
    if kind not in ("csv", "tsv"):
        return tuple(values)
    booleans = [str(value) for value in values if isinstance(value, bool)]
    spelled = [each for text in booleans for each in (text.lower(), text.upper())]
    return (*map(str, values), *spelled)


def _digest(row: Row) -> int:
    """64-bit hash of a row's content: the search for copies holds only these 8 bytes a row."""
    content = marshal.dumps((row.prompt, row.text, row.conversation), 2)  # 2: no references
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big", signed=True)


_GENERATED = (WordProblems, Chatter)


def _generated(spec: WordProblems | Chatter, name: str, where: str, separator: str) -> list[Row]:
    try:
        if isinstance(spec, WordProblems):
            keys = {"seed", "noise_share", "random_share", "forms", "operations"}
            options = spec.model_dump(include=keys)
            made = word_problems.problems(spec.split, spec.rows, **options)
        else:
            made = word_problems.chatter(spec.rows, seed=spec.seed)
    except ValueError as error:
        raise user_error(where, str(error), value=spec.model_dump()) from None
    return [
        solved(row["problem"], row["problem"] + separator, row["solution"], f"{name}:{i}", name)
        if "problem" in row
        else Row("", row["text"], f"{name}:{i}", name)
        for i, row in enumerate(made, 1)
    ]


def _planted(spec: Rows, rows: Iterable[Row]) -> Iterable[Row]:
    """The rows, with digits corrupted if the recipe asks for it; ``kind: held_out`` rows never."""
    if isinstance(spec, Table) and spec.corrupt_digits:
        return corrupt_digits(rows, spec.corrupt_digits, seed=0)
    return rows


def _name_of(spec: Rows) -> str:
    return str(spec.path) if isinstance(spec, TableFiles | TextFiles | Hub) else spec.kind
