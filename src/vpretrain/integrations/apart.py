"""Whether rows that steer or measure are also trained on, which would flatter the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any

import numpy as np

from vpretrain.integrations.datasets import documents_of, log
from vpretrain.language.data.rows import Document, same_tokens
from vpretrain.language.data.token_columns import IGNORED
from vpretrain.system.errors import UserError, user_error

_MASKS = ("completion_mask", "assistant_masks")
"""Columns of TRL that are 1 on predicted tokens, in place of labels."""
_SHOWN = 5
_SLICE_ROWS = 256
_LONG = 1_000_000
"""Rows whose reading takes minutes."""


def search(feedback: Sequence[Document], train: Any, evaluation: Any, tokenizer: Any) -> None:
    """Looks for feedback rows in the training rows, which is refused, and in those of evaluation,
    which is logged.

    Args:
        feedback: its documents.
        train: a Trainer's ``train_dataset``; if it cannot be read beforehand, that is logged.
        evaluation: its ``eval_dataset``, or several by name.
        tokenizer: the learner's.

    Raises:
        UserError: see :func:`check_apart`.
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    sets = evaluation.items() if isinstance(evaluation, Mapping) else [("", evaluation)]
    for name, rows in sets:
        where = f"eval_dataset {name}".rstrip()
        try:
            found = None if rows is None else trained_on(rows, tokenizer, where)
            check_apart(feedback, found or (), special)
        except UserError as error:
            log.warning("%s: its scores would count what steered", error.problems[0].message)
    if hasattr(train, "__len__") and len(train) >= _LONG:
        log.warning(
            "looking for feedback rows among the %s rows of train_dataset, some minutes for each "
            "million (Steering(search_train=False) leaves it out)",
            f"{len(train):,}",
        )
    documents = trained_on(train, tokenizer)
    if documents is None:
        log.warning(
            "train_dataset cannot be read beforehand: whether feedback rows are in it is not known"
        )
    else:
        check_apart(feedback, documents, special)


def check_apart(
    feedback: Sequence[Document],
    train: Iterable[Document],
    special: Set[int],
    *,
    where: str = "feedback_dataset",
) -> None:
    """Rejects feedback rows that are also trained on: their answers would be learned directly.

    Two rows are the same if their prompts, or all of their tokens, are equal apart from special
    tokens. Rows may also be blocks cut from joined texts: a feedback row is found anywhere in them
    (:class:`_Beginnings`).

    Args:
        feedback: its documents.
        train: documents of the training set; read once.
        special: tokens to ignore: beginning, end, padding.
        where: the argument, for the message.

    Raises:
        UserError: names the first rows that are in both.
    """
    beginnings = _Beginnings(feedback, special)
    shared = same_tokens(feedback, beginnings.watching(train), special) | beginnings.found
    if shared:
        pairs = [f"{row} = {other}" for row, other in shared.items()]
        of = " and ".join(dict.fromkeys(other.partition("[")[0] for other in shared.values()))
        raise user_error(
            where,
            f"{len(shared)} of {len(feedback)} rows are also in {of}; take them out of one of the "
            "two",
            value=", ".join(pairs[:_SHOWN]) + (", ..." if len(pairs) > _SHOWN else ""),
            accepted="rows that are not trained on",
        )


class _Beginnings:
    """Finds documents inside others by how they begin: by their prompt or, if they have none, by
    their first :data:`MOST` tokens; without special tokens.

    Beginnings of fewer than :data:`FEWEST` tokens are not looked for, since they say too little.

    Attributes:
        found: the origin of where it is, by the origin of what was looked for.
    """

    FEWEST, MOST = 12, 64

    def __init__(self, documents: Sequence[Document], special: Set[int]) -> None:
        self.found: dict[str, str] = {}
        self._special = np.array(sorted(special), dtype=np.int64)
        self._by_beginning: dict[tuple[int, ...], list[tuple[list[int], str]]] = {}
        for document in documents:
            given = next((at for at, counts in enumerate(document.predicted) if counts), 0)
            ids = document.ids[:given] if given > 1 else document.ids[: self.MOST]
            tokens = [token for token in ids if token not in special]
            if len(tokens) >= self.FEWEST:
                beginning = tuple(tokens[: self.FEWEST])
                self._by_beginning.setdefault(beginning, []).append((tokens, document.origin))
        self._first = np.array(sorted({each[0] for each in self._by_beginning}), dtype=np.int64)

    def watching(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents, and notes what is inside them."""
        for document in documents:
            if self._by_beginning:
                ids = np.asarray(document.ids, dtype=np.int64)
                self._look(ids[~_among(ids, self._special)], document.origin)
            yield document

    def _look(self, row: np.ndarray, origin: str) -> None:
        ids = row.tolist()
        for at in np.flatnonzero(_among(row, self._first)).tolist():
            for tokens, wanted in self._by_beginning.get(tuple(ids[at : at + self.FEWEST]), ()):
                if ids[at : at + len(tokens)] == tokens:
                    self.found[wanted] = origin


def _among(tokens: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Whether each token is one of some."""
    return np.isin(tokens, some, kind="table")


def trained_on(
    dataset: Any, tokenizer: Any, where: str = "train_dataset"
) -> Iterator[Document] | None:
    """Returns the rows of a training set as documents, packed ones split; ``where`` names it.

    None if they cannot be known in advance.
    """
    if not hasattr(dataset, "__len__") or not len(dataset):
        return None
    first = dataset[0]
    if not isinstance(first, Mapping):
        return None
    if "input_ids" in first:
        rows = enumerate(_read(dataset, first))
        return chain.from_iterable(_unpacked(row, place, where) for place, row in rows)
    try:
        return iter(
            documents_of(
                (dataset[i] for i in range(len(dataset))),
                tokenizer,
                max_tokens=2**31,
                where=where,
            )
        )
    except UserError:
        return None


def _read(dataset: Any, first: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a tokenised training set; a table's in slices, which is faster."""
    if not hasattr(dataset, "select_columns"):
        yield from (dataset[place] for place in range(len(dataset)))
        return
    read = ("input_ids", "labels", *_MASKS, "seq_lengths")
    columns = [name for name in read if name in first]
    # A transform that tokenises when rows are read makes columns that the table does not have.
    if set(columns) <= set(dataset.column_names):
        dataset = dataset.select_columns(columns)
    for part in dataset.iter(batch_size=_SLICE_ROWS):
        yield from (dict(zip(part, row, strict=True)) for row in zip(*part.values(), strict=True))


def _unpacked(row: Mapping[str, Any], place: int, where: str) -> Iterator[Document]:
    """Yields the documents of a tokenised training row, which TRL may have packed."""
    ids = list(map(int, row["input_ids"]))
    predicted = [True] * len(ids)
    if "labels" in row:
        predicted = [label != IGNORED for label in map(int, row["labels"])]
    for mask in (row[name] for name in _MASKS if row.get(name) is not None):
        predicted = [count and bool(bit) for count, bit in zip(predicted, mask, strict=True)]
    at = 0
    for length in row.get("seq_lengths") or [len(ids)]:
        part = slice(at, at + int(length))
        yield Document(ids[part], predicted[part], f"{where}[{place}]", where)
        at += int(length)
