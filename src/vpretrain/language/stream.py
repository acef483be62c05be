"""Batches of tokens from documents: the stream (mixed, shuffled, packed), and padded ones for the rest.

Nothing here is drawn from a buffer that is gone after a restart. Each pass over a source is a permutation
made anew from ``(seed, source, pass)``, and the source of the next document follows from how many each has
given: the position in the stream is a handful of integers, and resuming is exact and takes no skipping.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpretrain.errors import user_error
from vpretrain.language.rows import Document

LOOKAHEAD_DOCUMENTS = 16
"""How many pending documents the packer chooses from; the oldest goes first, so that none waits for ever."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Documents laid out in rows of equal length, B x T.

    A model isolates documents by the position ids alone: ``transformers`` starts a new document wherever they
    do not go up by one, but only in a call without an attention mask and with ``use_cache=False``, and with
    flash attention 2 only if there is one row. Padding is always at the end of a row, where causal attention
    keeps it from being seen.

    ``predicted`` speaks of targets: what position t predicts is at t + 1, so that with the logits of a model
    the loss is over ``logits[:, :-1][predicted[:, 1:]]`` and ``input_ids[predicted]``.

    Args:
        input_ids: [B, T] int64 token ids.
        predicted: [B, T] bool; True where the token AT this position counts in the loss and is predicted from
            those before it in its document: never at the first token of a document, nor on padding.
        position_ids: [B, T] int64, from 0 at each document; on padding 0 in a packed batch, and running on in
            a padded one (see :func:`padded`).
        document: [B, T] int64 index into ``documents``; -1 on padding.
        documents: the documents, in the order of rows and within them.
    """

    input_ids: Tensor
    predicted: Tensor
    position_ids: Tensor
    document: Tensor
    documents: tuple[Document, ...]

    @property
    def predicted_tokens(self) -> int:
        """Tokens that count in the loss, in this batch (local under data parallelism)."""
        return int(self.predicted.sum())

    @property
    def tokens(self) -> int:
        """Tokens that are not padding, in this batch (local under data parallelism)."""
        return int((self.document >= 0).sum())

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(
            self.input_ids.to(device),
            self.predicted.to(device),
            self.position_ids.to(device),
            self.document.to(device),
            self.documents,
        )

    def digest(self) -> str:
        """Sixteen hexadecimal digits (SHA-256 of shape, ids, mask): proof that arms saw the same batch."""
        sha = hashlib.sha256(repr(tuple(self.input_ids.shape)).encode())
        for tensor in (self.input_ids, self.predicted):
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """Documents that are drawn as one ingredient of the stream.

    Args:
        name: unlike every other source's; seeds the order of its documents.
        documents: at least one, each with a token to predict after its first.
        weight: at least 0, relative to the other sources' weights: the share of DOCUMENTS that are drawn from
            here. Not of tokens, because then tokenizer and window would decide which documents are seen and
            in which order. For a share of tokens, divide it by the source's mean document length.
    """

    name: str
    documents: list[Document]
    weight: float


class Stream:
    """Endless weighted mixture of sources, shuffled with a seed and packed into [batch_size, window_tokens].

    The sequence of documents is a function of seed and sources alone, and that of windows of these and
    ``window_tokens``; the batch size only says how many windows make a batch. The next document comes from
    the source that lags most behind its share, so that the shares hold exactly (to within a document or so)
    in every stretch of the stream and not only on average. Within a source, every document comes once before
    any comes again.

    A window is filled with whole documents: the oldest pending one, then of the next ``LOOKAHEAD_DOCUMENTS``
    each that still fits, in order; the rest is padding.

    Args:
        sources: at least one, with distinct names.
        batch_size: windows in a batch, at least 1.
        window_tokens: length of a window; no document may be longer (``encode(max_tokens=window_tokens)``).
        seed: of the shuffles.
        pad_id: token id that fills windows up; it is never predicted.

    Raises:
        UserError: no source, one without documents or with a weight that cannot be, no weight above zero, two
            of one name, or a document that does not fit the window or has nothing to predict.
    """

    def __init__(
        self, sources: Sequence[Source], *, batch_size: int, window_tokens: int, seed: int, pad_id: int
    ) -> None:
        if batch_size < 1 or window_tokens < 2:
            raise ValueError(f"a batch needs rows and a row 2 tokens, got {batch_size} x {window_tokens}")
        _check_sources(sources, window_tokens)
        total = math.fsum(source.weight for source in sources)
        self.batch_size = batch_size
        self.window_tokens = window_tokens
        self.pad_id = pad_id
        self._shares = [source.weight / total for source in sources]
        self._shuffled = [_Shuffled(source.documents, f"{seed}/{source.name}") for source in sources]
        self._drawn = [0] * len(sources)
        self._pending: list[tuple[int, int]] = []  # (source, how many it had given before)
        self._identity = {
            "seed": seed,
            "sources": [
                [source.name, source.weight, len(source.documents), sum(len(d.ids) for d in source.documents)]
                for source in sources
            ],
        }

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        return _laid_out(
            [self._window() for _ in range(self.batch_size)],
            width=self.window_tokens,
            pad_id=self.pad_id,
            padding_apart=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """The exact position, fit for JSON: what each source has given, and what the packer still holds."""
        return {
            "identity": self._identity,
            "drawn": list(self._drawn),
            "pending": [list(at) for at in self._pending],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to the position of :meth:`state_dict`; the batches that follow are the same, bit for bit.

        Raises:
            UserError: the state is of another seed, or of other sources, weights or documents.
        """
        _check_identity("data.stream", state["identity"], self._identity)
        self._drawn = [int(drawn) for drawn in state["drawn"]]
        self._pending = [(int(source), int(number)) for source, number in state["pending"]]

    def _window(self) -> list[Document]:
        """The documents of the next window, oldest first."""
        chosen: list[Document] = []
        room = self.window_tokens
        at = 0
        while True:
            while len(self._pending) < LOOKAHEAD_DOCUMENTS:
                self._pending.append(self._draw())
            if at == len(self._pending):
                return chosen
            source, number = self._pending[at]
            document = self._shuffled[source][number]
            if len(document.ids) <= room:
                # Those passed over did not fit a larger room: go on from here, where the next moves up to.
                room -= len(document.ids)
                chosen.append(document)
                del self._pending[at]
            else:
                at += 1

    def _draw(self) -> tuple[int, int]:
        """Takes the next document of the source that lags most behind its share (the first of equals)."""
        count = sum(self._drawn) + 1
        lags = [share * count - drawn for share, drawn in zip(self._shares, self._drawn, strict=True)]
        source = max((s for s, share in enumerate(self._shares) if share > 0), key=lags.__getitem__)
        number = self._drawn[source]
        self._drawn[source] += 1
        return source, number


class _Shuffled:
    """The endless sequence of some documents, each pass over them in an order of its own.

    Args:
        documents: at least one.
        key: seeds the orders, together with the number of the pass.
    """

    def __init__(self, documents: Sequence[Document], key: str) -> None:
        self.documents = documents
        self.key = key
        self._orders: dict[int, list[int]] = {}

    def __getitem__(self, number: int) -> Document:
        """The ``number``-th document of the sequence, from 0."""
        epoch, at = divmod(number, len(self.documents))
        if epoch not in self._orders:
            # Two passes at most: a packer that looks ahead goes to and fro between the last and the next.
            self._orders = {e: order for e, order in self._orders.items() if abs(e - epoch) == 1}
            sha = hashlib.sha256(f"{self.key}/{epoch}".encode())
            generator = torch.Generator().manual_seed(int.from_bytes(sha.digest()[:8], "big") >> 1)
            self._orders[epoch] = torch.randperm(len(self.documents), generator=generator).tolist()
        return self.documents[self._orders[epoch][at]]


class Sampler:
    """Endless seeded batches of documents, one document a row: the feedback set.

    In a pass no document comes twice; what is left at its end and does not fill a batch is left out of that
    pass, so that a batch never holds a document twice either (its halves have to be independent).

    Args:
        documents: at least ``batch_size``.
        batch_size: documents in a batch, at least 1.
        seed: of the shuffles.
        pad_id: token id that fills rows up; it is never predicted.
        where: dotted recipe key of the documents, for messages.

    Raises:
        UserError: there are fewer documents than a batch holds, or one has nothing to predict.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        batch_size: int,
        seed: int,
        pad_id: int,
        where: str = "data.feedback",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch needs documents, got batch_size={batch_size}")
        if len(documents) < batch_size:
            raise user_error(
                where,
                f"one batch of {batch_size} takes more than there are: add rows, or ask for smaller batches",
                value=f"{len(documents)} documents",
                accepted=f"at least {batch_size} documents",
            )
        for document in documents:
            _check_document(where, document)
        self.batch_size = batch_size
        self.pad_id = pad_id
        self._where = where
        self._documents = _Shuffled(documents, f"{seed}/feedback")
        self._batch = 0
        self._identity = {
            "seed": seed,
            "batch_size": batch_size,
            "documents": [len(documents), sum(len(document.ids) for document in documents)],
        }

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        return padded(self.draw(), pad_id=self.pad_id)

    def draw(self) -> list[Document]:
        """The documents of the next batch, before they are laid out."""
        count = len(self._documents.documents)
        epoch, at = divmod(self._batch, count // self.batch_size)
        start = epoch * count + at * self.batch_size
        self._batch += 1
        return [self._documents[start + i] for i in range(self.batch_size)]

    def state_dict(self) -> dict[str, Any]:
        """The exact position, fit for JSON."""
        return {"identity": self._identity, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to the position of :meth:`state_dict`; the batches that follow are the same, bit for bit.

        Raises:
            UserError: the state is of another seed, batch size or set of documents.
        """
        _check_identity(self._where, state["identity"], self._identity)
        self._batch = int(state["batch"])


def padded(documents: Sequence[Document], *, pad_id: int) -> TokenBatch:
    """One document a row, padded at the right to the longest (for feedback and evaluation).

    Positions run on through the padding, unlike a packed window's: a model then takes each row for one
    document and needs no mask but the causal one, which already keeps padding from being seen.

    Args:
        documents: at least one, in the order of the rows.
        pad_id: token id that fills rows up; it is never predicted.

    Raises:
        ValueError: there is no document, or nothing to predict in any of them.
    """
    if not documents:
        raise ValueError("a batch needs at least one document")
    width = max(len(document.ids) for document in documents)
    return _laid_out([[document] for document in documents], width=width, pad_id=pad_id, padding_apart=False)


def _laid_out(rows: Sequence[Sequence[Document]], *, width: int, pad_id: int, padding_apart: bool) -> TokenBatch:
    """Rows of documents as tensors; ``padding_apart`` makes each token of padding a document of its own."""
    ids = array("q")
    mask = bytearray()
    segments: list[tuple[int, int]] = []  # index and length: documents, and after each row its padding
    documents: list[Document] = []
    for number, row in enumerate(rows, start=1):
        for document in row:
            ids.extend(document.ids)
            mask += bytes(document.predicted)
            segments.append((len(documents), len(document.ids)))
            documents.append(document)
        rest = number * width - len(ids)
        ids.extend([pad_id] * rest)
        mask += bytes(rest)
        segments.append((-1, rest))
    index, lengths = torch.tensor(segments, dtype=torch.int64).unbind(1)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths).view(len(rows), width)
    document_of = index.repeat_interleave(lengths).view(len(rows), width)
    flat = torch.arange(len(rows) * width).view(len(rows), width)
    positions = flat - starts
    predicted = torch.frombuffer(mask, dtype=torch.bool).view(len(rows), width) & (positions > 0)
    if not predicted.any():
        raise ValueError(f"nothing to predict in this batch: {', '.join(d.origin for d in documents[:5])}")
    on_padding = torch.zeros_like(flat) if padding_apart else flat % width
    return TokenBatch(
        torch.frombuffer(ids, dtype=torch.int64).view(len(rows), width),
        predicted,
        torch.where(document_of < 0, on_padding, positions),
        document_of,
        tuple(documents),
    )


def _check_sources(sources: Sequence[Source], window_tokens: int) -> None:
    where = "data.stream"
    if not sources:
        raise user_error(where, "there is nothing to train on: name at least one source", accepted="a list of sources")
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            message = "two sources have this name, and it seeds the order of their rows: rename one"
            raise user_error(where, message, value=source.name, accepted="distinct names")
        if not source.documents:
            message = f"source {source.name!r} holds no documents (do its rows fit the window?): take it out"
            raise user_error(where, message, value="0 documents", accepted="at least one document")
        if not (math.isfinite(source.weight) and source.weight >= 0):
            message = f"the weight of source {source.name!r} is no share"
            raise user_error(where, message, value=source.weight, accepted="a finite number, at least 0")
        for document in source.documents:
            _check_document(where, document)
            if len(document.ids) > window_tokens:
                message = f"{document.origin} is longer than the window: cut the documents to its length"
                shown = f"{len(document.ids)} tokens"
                raise user_error(where, message, value=shown, accepted=f"at most {window_tokens} tokens")
    if not any(source.weight > 0 for source in sources):
        weights = {source.name: source.weight for source in sources}
        message = "all weights are zero, so that nothing would be drawn: give one source a weight"
        raise user_error(where, message, value=weights, accepted="at least one weight above 0")


def _check_document(where: str, document: Document) -> None:
    tokens = len(document.ids)
    if len(document.predicted) != tokens:
        raise ValueError(f"{document.origin}: {tokens} tokens, but a mask of {len(document.predicted)}")
    if not any(document.predicted[1:]):
        message = f"{document.origin} has no token to predict after its first: take it out, or mend its mask"
        raise user_error(where, message, value=f"{tokens} tokens", accepted="at least one predicted token")


def _check_identity(where: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key, value in here.items():
        if saved.get(key) != value:
            message = f"{key}: not as in the checkpoint; resume with the recipe and files it was made with"
            raise user_error(where, message, value=value, accepted=repr(saved.get(key)))
