"""The documents drawn for a step over all processes, and batches made from a selection of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vpretrain.language.data.batch import LossMean, TokenBatch, laid_out
from vpretrain.language.data.rows import Document
from vpretrain.system import distributed


@dataclass(frozen=True)
class Pool:
    """The documents that all processes drew for a step; the same on every process.

    Args:
        documents: the documents, in the order in which a single process would have drawn them.
        places: for each drawn document the rank that drew it, its batch there, and its index in
            that batch.
        tokens: number of tokens in the drawn documents.
        rows: number of rows in all batches.
        width: tokens of the longest row, padding included.
        packed: whether a row holds several documents.
        loss_mean: mean of the batches' loss.
        pad_id: padding token; any token will do, since it is never predicted.
    """

    documents: list[Document]
    places: list[tuple[int, int, int]]
    tokens: int
    rows: int
    width: int
    packed: bool
    loss_mean: LossMean
    pad_id: int = 0

    @classmethod
    def gathered(cls, batches: Sequence[TokenBatch], *, packed: bool) -> Pool:
        """The pool of all processes, from this process's batches. A collective call."""
        own = [
            [[(at, batch.documents[at]) for at in row] for row in _rows(batch)] for batch in batches
        ]
        width = max(batch.input_ids.shape[1] for batch in batches)
        of_ranks = distributed.all_gather_object((own, width))
        documents: list[Document] = []
        places: list[tuple[int, int, int]] = []
        rows = 0
        for number in range(len(batches)):
            # Rank r of W holds rows r, r + W, ... of every batch.
            for of_all in zip(*(rows_of[number] for rows_of, _ in of_ranks), strict=True):
                for rank, row in enumerate(of_all):
                    rows += 1
                    documents += [document for _, document in row]
                    places += [(rank, number, at) for at, _ in row]
        longest = max(width for _, width in of_ranks)
        tokens = sum(len(document.ids) for document in documents)
        return cls(documents, places, tokens, rows, longest, packed, batches[0].loss_mean)

    def joined_by(self, others: Sequence[Document]) -> Pool:
        """The pool with documents of earlier steps appended. ``tokens`` and ``rows`` do not change,
        and so neither does the size of its batches."""
        return replace(self, documents=[*self.documents, *others])

    def ordered(self, values: Sequence[Tensor]) -> Tensor:
        """Values of all drawn documents, float64 ``[n]`` in the order of ``documents``, from this
        process's values: one tensor a batch. A collective call."""
        of_ranks = distributed.all_gather_object([of_batch.tolist() for of_batch in values])
        figures = [of_ranks[rank][batch][at] for rank, batch, at in self.places]
        return torch.tensor(figures, dtype=torch.float64)

    def own(self, chosen: Sequence[int]) -> dict[int, list[int]]:
        """Indices, by batch, of the chosen documents that this process drew."""
        by_batch: dict[int, list[int]] = {}
        for rank, batch, at in (self.places[place] for place in chosen):
            if rank == distributed.rank():
                by_batch.setdefault(batch, []).append(at)
        return by_batch

    def filled(self, taken: Sequence[int], order: Sequence[int], share: float) -> list[int]:
        """Extends ``taken`` with the first documents of ``order`` until they make up ``share`` of
        what was drawn: at least that share of the rows in documents and, if rows are packed, of
        the tokens.

        Args:
            taken: distinct indices of documents.
            order: distinct indices of other documents.
            share: in [0, 1].
        """
        sizes = [len(document.ids) for document in self.documents]
        wanted = share * self.tokens if self.packed else 0.0
        filled, tokens = list(taken), sum(sizes[at] for at in taken)
        for at in order:
            if tokens >= wanted and len(filled) >= share * self.rows:
                break
            filled.append(at)
            tokens += sizes[at]
        return filled

    def batches(
        self, chosen: Sequence[int], *, count: int, share: float
    ) -> tuple[tuple[TokenBatch, ...], list[int]]:
        """This process's part of batches of chosen documents, and the indices of the documents that
        the batches of all processes hold.

        Documents are placed in the order of ``chosen``: one in each row, so that none is empty,
        then each in the fullest row with room for it. What fits nowhere is left out, and so rather
        the last ones.

        Args:
            chosen: indices of documents, the best first, at least as many as rows to fill.
            count: number of batches.
            share: number of rows, as a fraction of the drawn rows.
        """
        rows: list[list[Document]] = [[] for _ in range(round(share * self.rows))]
        room, kept = [self.width if self.packed else 1] * len(rows), []
        for at in chosen:
            size = len(self.documents[at].ids) if self.packed else 1
            fitting = [row for row in range(len(rows)) if size <= room[row]]
            empty = [row for row in fitting if not rows[row]]
            if fitting:
                row = min(empty or fitting, key=room.__getitem__)
                rows[row].append(self.documents[at])
                room[row] -= size
                kept.append(at)
        size = len(rows) // count
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return tuple(self._laid_out(part) for part in parts), kept

    def _laid_out(self, rows: Sequence[Sequence[Document]]) -> TokenBatch:
        longest = max(len(document.ids) for row in rows for document in row)
        return laid_out(
            rows[distributed.rank() :: distributed.world()],
            width=self.width if self.packed else longest,
            pad_id=self.pad_id,
            padding_apart=self.packed,
            loss_mean=self.loss_mean,
        )


def _rows(batch: TokenBatch) -> list[list[int]]:
    """The indices of the documents in each row of a batch."""
    return [[at for at in row.unique_consecutive().tolist() if at >= 0] for row in batch.document]
