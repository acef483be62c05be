"""Documents laid out in rows as tensors: packed into windows, or one a row and padded."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vpretrain.language.data.rows import Document

LossMean = Literal["token", "example"]
"""What a loss is a mean over: the predicted tokens of a batch, or its examples, each with the mean
over its own (eq. 37, 38)."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Documents laid out in rows of equal length, B x T.

    A model isolates documents by the position ids alone: ``transformers`` starts a new document
    wherever they do not go up by one, but only in a call without an attention mask and with
    ``use_cache=False``, and with flash attention 2 only if there is one row. Padding is always at
    the end of a row, where causal attention keeps it from being seen.

    ``predicted`` speaks of targets: what position t predicts is at t + 1, so that with the logits
    of a model the loss is over ``logits[:, :-1][predicted[:, 1:]]`` and ``input_ids[predicted]``.

    Args:
        input_ids: [B, T] int64 token ids.
        predicted: [B, T] bool; True where the token AT this position counts in the loss and is
            predicted from those before it in its document: never at the first token of a document,
            nor on padding.
        position_ids: [B, T] int64, from 0 at each document; on padding 0 in a packed batch, and
            running on in a padded one (see :func:`padded`).
        document: [B, T] int64 index into ``documents``; -1 on padding.
        documents: the documents, in the order of rows and within them.
        loss_mean: what the learner's loss on it is a mean over.
    """

    input_ids: Tensor
    predicted: Tensor
    position_ids: Tensor
    document: Tensor
    documents: tuple[Document, ...]
    loss_mean: LossMean = "token"

    @property
    def weight(self) -> int:
        """How many things the loss is a mean over: predicted tokens, or examples."""
        if self.loss_mean == "token":
            return self.predicted_tokens
        return len(self.document[self.predicted].unique())

    @property
    def predicted_tokens(self) -> int:
        """Tokens that count in the loss, in this batch (local under data parallelism)."""
        return int(self.predicted.sum())

    @property
    def tokens(self) -> int:
        """Tokens that are not padding, in this batch (local under data parallelism)."""
        return int((self.document >= 0).sum())

    def to(self, device: torch.device | str) -> TokenBatch:
        names = ("input_ids", "predicted", "position_ids", "document")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def digest(self) -> str:
        """Sixteen hexadecimal digits (SHA-256 of shape, ids, mask): proof of the same batch."""
        sha = hashlib.sha256(repr(tuple(self.input_ids.shape)).encode())
        for tensor in (self.input_ids, self.predicted):
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


def padded(documents: Sequence[Document], *, pad_id: int) -> TokenBatch:
    """One document a row, padded at the right to the longest (for feedback and evaluation).

    Positions run on through the padding, unlike a packed window's: a model then takes each row for
    one document and needs no mask but the causal one, which already keeps padding from being seen.
    """
    if not documents:
        raise ValueError("a batch needs at least one document")
    width, rows = max(len(document.ids) for document in documents), [[each] for each in documents]
    return laid_out(rows, width=width, pad_id=pad_id, padding_apart=False)


def left_padded(
    prompts: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask (0 on padding) of prompts that all end in the last column,
    ``[prompts, longest]`` int64."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def joined(batches: Sequence[TokenBatch], *, pad_id: int, padding_apart: bool) -> TokenBatch:
    """The rows of all batches as one, as long as the longest; see :func:`laid_out`."""
    rows = [
        [batch.documents[at] for at in row.unique().tolist() if at >= 0]
        for batch in batches
        for row in batch.document
    ]
    return laid_out(
        rows,
        width=max(batch.input_ids.shape[1] for batch in batches),
        pad_id=pad_id,
        padding_apart=padding_apart,
        loss_mean=batches[0].loss_mean,
    )


def laid_out(
    rows: Sequence[Sequence[Document]],
    *,
    width: int,
    pad_id: int,
    padding_apart: bool,
    loss_mean: LossMean = "token",
) -> TokenBatch:
    """Rows of documents as tensors; if ``padding_apart``, each token of padding is a document."""
    ids = array("i")
    mask = bytearray()
    # Index and length: documents, and after each row its padding.
    segments: list[tuple[int, int]] = []
    documents: list[Document] = []
    for number, row in enumerate(rows, start=1):
        for document in row:
            ids.extend(document.ids)
            mask += bytes(document.predicted)
            segments.append((len(documents), len(document.ids)))
            documents.append(document)
        rest = number * width - len(ids)
        ids.extend(array("i", [pad_id]) * rest)
        mask += bytes(rest)
        segments.append((-1, rest))
    # Rows are written one behind the other into flat buffers, and the segments' lengths then tell
    # every position its document and its place in it: no loop over tokens in Python.
    index, lengths = torch.tensor(segments, dtype=torch.int64).unbind(1)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths).view(len(rows), width)
    document_of = index.repeat_interleave(lengths).view(len(rows), width)
    flat = torch.arange(len(rows) * width).view(len(rows), width)
    positions = flat - starts
    predicted = torch.frombuffer(mask, dtype=torch.bool).view(len(rows), width) & (positions > 0)
    if not predicted.any():
        origins = ", ".join(document.origin for document in documents[:5])
        raise ValueError(f"nothing to predict in this batch: {origins}")
    # A model starts a document wherever positions do not go up by one. Packed padding at 0
    # throughout is many documents of one token, which cost attention nothing; a padded row's runs
    # on, so that the row is one document.
    on_padding = torch.zeros_like(flat) if padding_apart else flat % width
    return TokenBatch(
        torch.frombuffer(ids, dtype=torch.int32).long().view(len(rows), width),
        predicted,
        torch.where(document_of < 0, on_padding, positions),
        document_of,
        tuple(documents),
        loss_mean,
    )
