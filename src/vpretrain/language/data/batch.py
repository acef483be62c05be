"""Batches of documents as tensors: packed into windows, or one document a row with padding."""

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
"""Mean of a loss: over the predicted tokens of a batch, or over its examples (documents), each with
the mean over its own predicted tokens (eq. 37, 38)."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """A batch of documents in B rows of T tokens.

    A model separates documents by their position ids alone: ``transformers`` starts a new document
    wherever they do not increase by one, but only in a call without an attention mask and with
    ``use_cache=False``, and with flash attention 2 only if there is one row. Padding is always at
    the end of a row, where causal attention hides it from the tokens before.

    ``predicted`` marks targets, not inputs: position t predicts the token at t + 1, so the loss is
    taken over ``logits[:, :-1][predicted[:, 1:]]`` and ``input_ids[predicted]``.

    Args:
        input_ids: [B, T] int64 token ids.
        predicted: [B, T] bool; True where the token AT this position counts in the loss and is
            predicted from those before it in its document: never at the first token of a document,
            nor on padding.
        position_ids: [B, T] int64, from 0 in each document. On padding they are 0 in a packed batch
            and keep counting in a padded one (see :func:`padded`).
        document: [B, T] int64 index into ``documents``; -1 on padding.
        documents: the documents, row by row.
        loss_mean: mean of the learner's loss on this batch.
    """

    input_ids: Tensor
    predicted: Tensor
    position_ids: Tensor
    document: Tensor
    documents: tuple[Document, ...]
    loss_mean: LossMean = "token"

    @property
    def weight(self) -> int:
        """Number of predicted tokens or of examples (see ``loss_mean``) that the loss averages."""
        if self.loss_mean == "token":
            return self.predicted_tokens
        return len(self.document[self.predicted].unique())

    @property
    def predicted_tokens(self) -> int:
        """Number of tokens that count in the loss (local under data parallelism)."""
        return int(self.predicted.sum())

    @property
    def tokens(self) -> int:
        """Number of tokens that are not padding (local under data parallelism)."""
        return int((self.document >= 0).sum())

    def to(self, device: torch.device | str) -> TokenBatch:
        names = ("input_ids", "predicted", "position_ids", "document")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def digest(self) -> str:
        """SHA-256 of shape, ids and loss mask, cut to 16 hexadecimal digits; identifies a batch."""
        sha = hashlib.sha256(repr(tuple(self.input_ids.shape)).encode())
        for tensor in (self.input_ids, self.predicted):
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


def padded(documents: Sequence[Document], *, pad_id: int) -> TokenBatch:
    """A batch of one document a row, right-padded to the longest (for feedback and evaluation).

    Unlike in a packed window, position ids keep counting through the padding. A model then takes
    each row for one document and needs no mask beyond the causal one, which hides the padding.
    """
    if not documents:
        raise ValueError("a batch needs at least one document")
    width, rows = max(len(document.ids) for document in documents), [[each] for each in documents]
    return laid_out(rows, width=width, pad_id=pad_id, padding_apart=False)


def left_padded(
    prompts: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Left-padded token ids and attention mask (0 on padding) of prompts, both int64
    ``[prompts, longest]``."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def joined(batches: Sequence[TokenBatch], *, pad_id: int, padding_apart: bool) -> TokenBatch:
    """One batch with the rows of all batches, padded to the longest; see :func:`laid_out`."""
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
    """The batch of rows of documents, each filled up to ``width`` tokens with ``pad_id``.

    Position ids on padding are 0 if ``padding_apart``, and keep counting otherwise. Raises
    ``ValueError`` if no token is predicted.
    """
    ids = array("i")
    mask = bytearray()
    # (document index, length) of every document, and (-1, length) of the padding after each row.
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
    # Rows are concatenated in flat buffers. The segments' lengths then give the document and the
    # position of every token without a loop over tokens in Python.
    index, lengths = torch.tensor(segments, dtype=torch.int64).unbind(1)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths).view(len(rows), width)
    document_of = index.repeat_interleave(lengths).view(len(rows), width)
    flat = torch.arange(len(rows) * width).view(len(rows), width)
    positions = flat - starts
    predicted = torch.frombuffer(mask, dtype=torch.bool).view(len(rows), width) & (positions > 0)
    if not predicted.any():
        origins = ", ".join(document.origin for document in documents[:5])
        raise ValueError(f"nothing to predict in this batch: {origins}")
    # A model starts a document wherever position ids do not increase by one. Padding of a packed
    # row, at position 0 throughout, is many documents of one token, which cost attention nothing.
    # In a padded row the positions keep counting, so that the row is one document.
    on_padding = torch.zeros_like(flat) if padding_apart else flat % width
    return TokenBatch(
        torch.frombuffer(ids, dtype=torch.int32).long().view(len(rows), width),
        predicted,
        torch.where(document_of < 0, on_padding, positions),
        document_of,
        tuple(documents),
        loss_mean,
    )
