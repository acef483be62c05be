"""Documents of random tokens, a stream of them, and a batch laid out by loops over its cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import (
    Source,
    Stream,
    TokenBatch,
)

PAD = 0


VOCABULARY = 40


WINDOW = 24


def make_documents(name: str, lengths: Sequence[int], *, prompt: int = 0) -> list[Document]:
    generator = torch.Generator().manual_seed(len(name) + 7 * len(lengths))
    documents = []
    for i, length in enumerate(lengths):
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        masked = min(prompt, length - 1)
        predicted = [False] * masked + [True] * (length - masked)
        documents.append(Document(ids, predicted, f"{name}:{i}", name))
    return documents


def make_stream(
    *,
    weights: Sequence[float] = (2.0, 1.0),
    batch_size: int = 3,
    window_tokens: int = WINDOW,
    seed: int = 0,
) -> Stream:
    many = make_documents("many", [2 + (7 * i) % 22 for i in range(40)], prompt=2)
    few = make_documents("few", [3, 24, 11])
    sources = [Source("many", many, weights[0]), Source("few", few, weights[1])]
    return Stream(
        sources, batch_size=batch_size, window_tokens=window_tokens, seed=seed, pad_id=PAD
    )


def same(a: TokenBatch, b: TokenBatch) -> bool:
    return (
        torch.equal(a.input_ids, b.input_ids)
        and torch.equal(a.predicted, b.predicted)
        and torch.equal(a.position_ids, b.position_ids)
        and torch.equal(a.document, b.document)
        and a.documents == b.documents
    )


def laid_out_by_hand(
    rows: Sequence[Sequence[Document]], width: int, *, padding_apart: bool
) -> TokenBatch:
    """The definition of a batch as loops over its cells."""
    ids, predicted, positions, index = ([[0] * width for _ in rows] for _ in range(4))
    documents: list[Document] = []
    for b, row in enumerate(rows):
        t = 0
        for document in row:
            for at, (token, counts) in enumerate(
                zip(document.ids, document.predicted, strict=True)
            ):
                ids[b][t], predicted[b][t] = token, int(counts and at > 0)
                positions[b][t], index[b][t] = at, len(documents)
                t += 1
            documents.append(document)
        for rest in range(t, width):
            ids[b][rest], index[b][rest] = PAD, -1
            positions[b][rest] = 0 if padding_apart else rest
    return TokenBatch(
        torch.tensor(ids),
        torch.tensor(predicted).bool(),
        torch.tensor(positions),
        torch.tensor(index),
        tuple(documents),
    )


def windows_of(batch: TokenBatch) -> list[list[Document]]:
    """The documents of each row, read off the tensors."""
    return [
        [batch.documents[i] for i in dict.fromkeys(row.tolist()) if i >= 0]
        for row in batch.document
    ]


def origins(stream: Stream, batches: int) -> list[str]:
    return [document.origin for _ in range(batches) for document in next(stream).documents]
