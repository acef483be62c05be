"""Rows of files and hub data sets, one at a time; an unusable row is replaced by its problem.

Files are read directly, not through ``datasets``, so that a row can be named by ``file:line``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from vpretrain.language.data.columns import Columns
from vpretrain.language.data.rows import Row
from vpretrain.language.recipe.rows import Hub
from vpretrain.system.errors import Problem, UserError, brief, user_error
from vpretrain.system.locations import Place, check_file
from vpretrain.system.tables import (
    Unit,
    documents,
    kind_by_name,
    readable,
    records,
)

_ROWS_PER_READ = 1_000  # rows in a read of a hub data set

Rows = Iterator[Row | Problem]


def table(path: Place, kind: str, columns: Columns) -> Rows:
    """The rows of a table (see :func:`vpretrain.system.tables.records`), named
    ``file:line``, or ``file:row`` where a file has no lines.

    Raises:
        UserError: the file cannot be read, is of another kind, or lacks a column.
    """

    def choose(names: Sequence[str]) -> list[str]:
        if problem := columns.missing(names, str(path)):
            raise UserError(problem)
        return list(columns.read)

    check_file(path, columns.where)
    if (named := kind_by_name(path)) not in (None, "text", kind):
        message = f"{path.name} is a file of another kind, by its name"
        raise user_error(f"{columns.where}.kind", message, value=kind, accepted=str(named))
    with readable(path, kind, f"{columns.where}.path"):
        for number, cells in records(path, kind, choose):
            if isinstance(cells, Problem):
                yield cells
            elif columns.keeps(cells):
                yield columns.row(cells, f"{path}:{number}")


def text(path: Place, source: str, where: str, *, document: Unit) -> Rows:
    """The raw text of a UTF-8 file (see :func:`vpretrain.system.tables.documents`); ``UserError``
    if it cannot be read."""
    check_file(path, where)
    with readable(path, "text", f"{where}.path"):
        for number, whole in documents(path, document):
            if isinstance(whole, Problem):
                yield whole
            else:
                yield Row("", whole, f"{path}:{number}", source)


def hub(spec: Hub, columns: Columns) -> Rows:
    """The rows of a hub data set, in its order, named ``path/split:row`` from 1.

    Raises:
        UserError: the data set cannot be read, or lacks a column.
    """
    import datasets

    try:
        options = spec.model_dump(include={"path", "name", "split", "revision", "streaming"})
        table = datasets.load_dataset(**options)
        if (names := table.column_names) is not None:
            if problem := columns.missing(names, f"{spec.path}/{spec.split}"):
                raise UserError(problem)
            table = table.select_columns(list(columns.read))
        number = 0
        for batch in table.iter(_ROWS_PER_READ):  # row by row takes ten times as long
            for values in zip(*batch.values(), strict=True):
                number += 1
                cells = dict(zip(batch, values, strict=True))
                if columns.keeps(cells):
                    yield columns.row(cells, f"{spec.path}/{spec.split}:{number}")
    except UserError:
        raise
    except Exception as error:  # datasets, huggingface_hub and the network have no common base
        hint = ""
        if os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0"):
            hint = " (HF_HUB_OFFLINE is set, so only what was cached before is available)"
        message = f"this data set cannot be read from the hub{hint}: {brief(error)}"
        accepted = "id, configuration, split and revision of one that is online or cached"
        where = f"{columns.where}.path"
        raise user_error(where, message, value=spec.path, accepted=accepted) from error
