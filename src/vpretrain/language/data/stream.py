"""Endless batches: the stream (mixed, shuffled, packed), and samples of the feedback set.

There is no shuffle buffer that a restart would lose. Each pass over a source is a permutation
computed from ``(seed, source, pass)``, and the source of the next document follows from how many
documents each has given. The position in the stream is thus a handful of integers, and resuming is
exact without skipping through the data.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from vpretrain.language.data.batch import LossMean, TokenBatch, joined, laid_out, padded
from vpretrain.language.data.row_store import StoredDocuments
from vpretrain.language.data.rows import Document
from vpretrain.method import roles
from vpretrain.system.errors import user_error
from vpretrain.system.sampling import Mixture, Order, check_identity, check_parts

LOOKAHEAD_DOCUMENTS = 16
"""Number of pending documents that the packer chooses from. The oldest always goes first, so that
none waits forever."""


@dataclass(frozen=True)
class Source:
    """One source of the stream's mixture.

    Args:
        name: unique name, which seeds the order of the documents.
        documents: at least one, each with a token to predict after its first.
        weight: share of the DOCUMENTS drawn from this source, at least 0 and relative to the other
            sources' weights. It is not a share of tokens, because then tokenizer and window would
            decide which documents are seen and in which order. For a share of tokens, divide it by
            the source's mean document length.
    """

    name: str
    documents: Sequence[Document]
    weight: float


class CutDocuments(Sequence[Document]):
    """Documents truncated, on access, to the length of a window. Documents with no token left to
    predict are excluded.

    Args:
        documents: documents of a source.
        most: maximum number of tokens.
    """

    def __init__(self, documents: Sequence[Document], most: int) -> None:
        self._documents, self._most = documents, most
        usable = (at for at, document in enumerate(documents) if any(document.predicted[1:most]))
        self._kept = array("q", usable)

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, at: int) -> Document: ...
    @overload
    def __getitem__(self, at: slice) -> list[Document]: ...
    def __getitem__(self, at: int | slice) -> Document | list[Document]:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        document, most = self._documents[self._kept[at]], self._most
        return replace(document, ids=document.ids[:most], predicted=document.predicted[:most])


class Stream(roles.Stream[TokenBatch]):
    """Endless weighted mixture of sources (:class:`~vpretrain.system.sampling.Mixture`), packed
    into [batch_size, window_tokens].

    The sequence of documents depends on seed and sources alone, and the sequence of windows also on
    ``window_tokens``; the batch size only groups the windows.

    A window is filled with whole documents: the oldest pending one, then each of the next
    ``LOOKAHEAD_DOCUMENTS`` that still fits, in order; the rest is padding. Without packing it holds
    one document, and is as long as the longest of its batch.

    Rank r of W gets the windows r, r + W, r + 2W, ... of every batch. The ranks' batches together
    are the batch of a single process, and the position is the same on all ranks, so that a run can
    be resumed on another number of ranks.

    Args:
        sources: at least one, with distinct names.
        batch_size: windows in a batch over all ranks, at least 1.
        window_tokens: length of a window; no document may be longer
            (``encode(max_tokens=window_tokens)``).
        seed: seed of the shuffles.
        pad_id: token id of the padding, which is never predicted.
        packing: whether a window may hold several documents.
        rank: rank of this process, from 0.
        world: number of ranks.
        loss_mean: mean of the batches' loss.

    Raises:
        UserError: there is no source, a source has no documents or an invalid weight, no weight is
            above zero, two sources have the same name, a document does not fit the window or has
            nothing to predict, or the batch size is not a multiple of the number of ranks.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        window_tokens: int,
        seed: int | str,
        pad_id: int,
        packing: bool = True,
        rank: int = 0,
        world: int = 1,
        loss_mean: LossMean = "token",
    ) -> None:
        if batch_size < 1 or window_tokens < 2:
            shape = f"{batch_size} x {window_tokens}"
            raise ValueError(f"a batch needs rows and a row 2 tokens, got {shape}")
        check_parts(batch_size, rank, world)
        each = [(source.name, len(source.documents), source.weight) for source in sources]
        fix = " (do its rows fit the window?): take it out"
        self._mixture = Mixture(each, seed=seed, items="documents", fix=fix)
        self._lengths = [_lengths(source, window_tokens) for source in sources]
        self.batch_size, self.window_tokens, self.pad_id = batch_size, window_tokens, pad_id
        self.packing, self.loss_mean = packing, loss_mean
        self.rank, self.world = rank, world
        self._sources = list(sources)
        # As drawn from the mixture: source, position in its order, index of the document.
        self._pending: list[tuple[int, int, int]] = []
        # Sources are identified by names, weights and lengths: hashing every document would read a
        # stream of millions from disk at each start.
        self._identity = {
            "seed": seed,
            "sources": [
                [source.name, source.weight, len(lengths), sum(lengths)]
                for source, lengths in zip(sources, self._lengths, strict=True)
            ],
        }

    def __next__(self) -> TokenBatch:
        # Every rank draws all windows and lays out its own, which keeps the position the same on
        # all of them; drawing costs only a few integers.
        windows = [self._window() for _ in range(self.batch_size)]
        # Over the windows of all ranks, so that unpacked rows have the same width on each.
        longest = max(self._lengths[source][place] for (source, _, place), *_ in windows)
        return laid_out(
            [
                [self._sources[source].documents[place] for source, _, place in window]
                for window in windows[self.rank :: self.world]
            ],
            width=self.window_tokens if self.packing else longest,
            pad_id=self.pad_id,
            padding_apart=self.packing,
            loss_mean=self.loss_mean,
        )

    @property
    def documents(self) -> int:
        """Number of documents in the sources with a weight above zero."""
        drawn = zip(self._sources, self._lengths, strict=True)
        return sum(len(lengths) for source, lengths in drawn if source.weight)

    @property
    def tokens(self) -> int:
        """Number of tokens in the sources with a weight above zero."""
        drawn = zip(self._sources, self._lengths, strict=True)
        return sum(sum(lengths) for source, lengths in drawn if source.weight)

    def state_dict(self) -> dict[str, Any]:
        """The exact position, JSON-serialisable: the documents drawn from each source, and the
        pending ones."""
        # A pending document is stored as its position in the source's order. The seed gives the
        # document, so that a checkpoint holds no text.
        pending = [[source, number] for source, number, _ in self._pending]
        drawn = list(self._mixture.drawn)
        return {"identity": self._identity, "drawn": drawn, "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a position; ``UserError`` if seed, sources, weights or documents differ."""
        check_identity("data.stream", state["identity"], self._identity)
        self._mixture.drawn = [int(drawn) for drawn in state["drawn"]]
        pending = [(int(source), int(number)) for source, number in state["pending"]]
        orders = self._mixture.orders
        self._pending = [(source, number, orders[source][number]) for source, number in pending]

    def _window(self) -> list[tuple[int, int, int]]:
        """The entries of ``_pending`` that form the next window, oldest first."""
        if not self.packing:
            return [self._mixture.draw()]
        chosen: list[tuple[int, int, int]] = []
        room = self.window_tokens
        at = 0
        while True:
            # Refilled after every choice, so that the packer always sees the same number.
            while len(self._pending) < LOOKAHEAD_DOCUMENTS:
                self._pending.append(self._mixture.draw())
            if at == len(self._pending):
                return chosen
            source, _, place = self._pending[at]
            length = self._lengths[source][place]
            if length <= room:
                # Room only shrinks, so documents passed over cannot fit any more: continue at the
                # same index, which the next document moves to.
                room -= length
                chosen.append(self._pending.pop(at))
            else:
                at += 1


class JoinedStreams(roles.Stream[TokenBatch]):
    """Concatenates, row-wise, a batch of each stream.

    Args:
        streams: streams by name, at least one, with the same packing and padding token.
    """

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self.streams = dict(streams)

    def __next__(self) -> TokenBatch:
        first = next(iter(self.streams.values()))
        batches = [next(stream) for stream in self.streams.values()]
        return joined(batches, pad_id=first.pad_id, padding_apart=first.packing)

    def state_dict(self) -> dict[str, Any]:
        return {name: stream.state_dict() for name, stream in self.streams.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, stream in self.streams.items():
            stream.load_state_dict(state[name])


class Sampler:
    """Endless seeded batches of the feedback set, one document a row.

    A pass draws no document twice and drops the documents at its end that do not fill a batch.
    Hence no batch holds a document twice (its halves have to be independent).

    Args:
        documents: at least ``batch_size`` documents.
        batch_size: at least 1.
        seed: seed of the shuffles.
        pad_id: token id of the padding, which is never predicted.
        where: dotted recipe key of the documents.

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
        count = len(documents)
        if count < batch_size:
            message = f"one batch of {batch_size} takes more than there are: add rows, or ask for "
            message += "smaller batches"
            accepted = f"at least {batch_size} documents"
            raise user_error(where, message, value=f"{count} documents", accepted=accepted)
        for document in documents:
            _check_document(where, document)
        self.batch_size, self.pad_id = batch_size, pad_id
        self._where = where
        self.documents, self._order = documents, Order(count, f"{seed}/feedback")
        self._batch = 0
        lengths = [count, sum(len(document.ids) for document in documents)]
        self._identity = {"seed": seed, "batch_size": batch_size, "documents": lengths}

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        return padded(self.draw(), pad_id=self.pad_id)

    def draw(self) -> list[Document]:
        """The documents of the next batch."""
        count = len(self.documents)
        # A batch never spans two passes, where it could hold a document twice.
        epoch, at = divmod(self._batch, count // self.batch_size)
        start = epoch * count + at * self.batch_size
        self._batch += 1
        return [self.documents[self._order[start + i]] for i in range(self.batch_size)]

    def state_dict(self) -> dict[str, Any]:
        return {"identity": self._identity, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a position; ``UserError`` if seed, batch size or documents differ."""
        check_identity(self._where, state["identity"], self._identity)
        self._batch = int(state["batch"])


def _lengths(source: Source, window_tokens: int) -> Sequence[int]:
    """Number of tokens of each document of a source; ``UserError`` if a stream cannot use one."""
    documents, where = source.documents, "data.stream"
    if isinstance(documents, StoredDocuments):  # checked when they were stored
        lengths = documents.lengths
    else:
        for document in documents:
            _check_document(where, document)
        lengths = array("i", (len(document.ids) for document in documents))
    if max(lengths) > window_tokens:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        message = f"{documents[longest].origin} is longer than the window: cut the documents to it"
        shown = f"{lengths[longest]} tokens"
        raise user_error(where, message, value=shown, accepted=f"at most {window_tokens} tokens")
    return lengths


def _check_document(where: str, document: Document) -> None:
    tokens, origin = len(document.ids), document.origin
    if len(document.predicted) != tokens:
        raise ValueError(f"{origin}: {tokens} tokens, but a mask of {len(document.predicted)}")
    if not any(document.predicted[1:]):
        message = f"{origin} has no token to predict after its first: take it out, or correct its "
        accepted = "at least one predicted token"
        raise user_error(where, f"{message}mask", value=f"{tokens} tokens", accepted=accepted)
