"""Batches without end: the stream (mixed, shuffled, packed), and samples of the feedback set.

Nothing here is drawn from a buffer that is gone after a restart. Each pass over a source is a
permutation made anew from ``(seed, source, pass)``, and the source of the next document follows
from how many each has given: the position in the stream is a handful of integers, and resuming is
exact and takes no skipping.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from vpretrain.language.data.batch import LossMean, TokenBatch, joined, laid_out, padded
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stored import StoredDocuments
from vpretrain.method import roles
from vpretrain.system.errors import user_error
from vpretrain.system.sampling import Mixture, Order, check_identity, check_parts

LOOKAHEAD_DOCUMENTS = 16
"""Pending documents that the packer chooses from; the oldest goes first, so that none waits for
ever."""


@dataclass(frozen=True)
class Source:
    """Documents that are drawn as one ingredient of the stream.

    Args:
        name: unlike every other source's; seeds the order of its documents.
        documents: at least one, each with a token to predict after its first.
        weight: at least 0, relative to the other sources' weights: the share of DOCUMENTS that are
            drawn from here. Not of tokens, because then tokenizer and window would decide which
            documents are seen and in which order. For a share of tokens, divide it by the source's
            mean document length.
    """

    name: str
    documents: Sequence[Document]
    weight: float


class CutDocuments(Sequence[Document]):
    """The documents as far as a window goes, cut when they are read; those of which nothing is left
    to predict are left out.

    Args:
        documents: of a source.
        most: tokens of a window.
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

    The sequence of documents is a function of seed and sources alone, and that of windows of these
    and ``window_tokens``; the batch size only says how many windows make a batch.

    A window is filled with whole documents: the oldest pending one, then of the next
    ``LOOKAHEAD_DOCUMENTS`` each that still fits, in order; the rest is padding. Without packing it
    holds one document, and is as long as the longest of its batch.

    Of the windows of a batch, rank r of W lays out r, r + W, r + 2W, ...: the ranks' batches
    together are the one of a single process, and the position is the same on all of them, so that a
    run resumes on another number of ranks.

    Args:
        sources: at least one, with distinct names.
        batch_size: windows in a batch over all ranks, at least 1.
        window_tokens: length of a window; no document may be longer
            (``encode(max_tokens=window_tokens)``).
        seed: of the shuffles.
        pad_id: token id that fills windows up; it is never predicted.
        packing: whether a window may hold several documents.
        rank: which part of every batch this is, from 0.
        world: how many parts there are.
        loss_mean: of its batches.

    Raises:
        UserError: no source, one without documents or with a weight that cannot be, no weight above
            zero, two of one name, a document that does not fit the window or has nothing to
            predict, or a batch that the ranks cannot share evenly.
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
        # As the mixture draws them: source, how many it had given before, which one that is.
        self._pending: list[tuple[int, int, int]] = []
        # Names, weights and lengths stand for the content: hashing every document would read a
        # stream of millions from disk at each start.
        self._identity = {
            "seed": seed,
            "sources": [
                [source.name, source.weight, len(lengths), sum(lengths)]
                for source, lengths in zip(sources, self._lengths, strict=True)
            ],
        }

    def __next__(self) -> TokenBatch:
        # Every rank draws all windows and lays out its own: the position is the same on all of
        # them, and drawing is a matter of a few integers.
        windows = [self._window() for _ in range(self.batch_size)]
        # Over all windows, not its own: unpacked rows have one width on every rank.
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
        """How many documents the sources have that are drawn from."""
        drawn = zip(self._sources, self._lengths, strict=True)
        return sum(len(lengths) for source, lengths in drawn if source.weight)

    @property
    def tokens(self) -> int:
        """How many tokens they have."""
        drawn = zip(self._sources, self._lengths, strict=True)
        return sum(sum(lengths) for source, lengths in drawn if source.weight)

    def state_dict(self) -> dict[str, Any]:
        """The exact position, fit for JSON: what each source has given, and which documents are
        pending."""
        # A pending document is known by its place in its source's order; which one that is follows
        # from the seed, so that a checkpoint holds no text.
        pending = [[source, number] for source, number, _ in self._pending]
        drawn = list(self._mixture.drawn)
        return {"identity": self._identity, "drawn": drawn, "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position; ``UserError`` if it is of another seed, or of other sources, weights
        or documents."""
        check_identity("data.stream", state["identity"], self._identity)
        self._mixture.drawn = [int(drawn) for drawn in state["drawn"]]
        pending = [(int(source), int(number)) for source, number in state["pending"]]
        orders = self._mixture.orders
        self._pending = [(source, number, orders[source][number]) for source, number in pending]

    def _window(self) -> list[tuple[int, int, int]]:
        """The documents of the next window, oldest first, as in ``_pending``."""
        if not self.packing:
            return [self._mixture.draw()]
        chosen: list[tuple[int, int, int]] = []
        room = self.window_tokens
        at = 0
        while True:
            # Filled up after every choice: there are always as many documents to choose from.
            while len(self._pending) < LOOKAHEAD_DOCUMENTS:
                self._pending.append(self._mixture.draw())
            if at == len(self._pending):
                return chosen
            source, _, place = self._pending[at]
            length = self._lengths[source][place]
            if length <= room:
                # Room only shrinks, so that what was passed over cannot fit any more: go on from
                # here, where the next document moves up to.
                room -= length
                chosen.append(self._pending.pop(at))
            else:
                at += 1


class JoinedStreams(roles.Stream[TokenBatch]):
    """A batch of each stream, one below the other.

    Args:
        streams: by name, at least one; of one packing and padding.
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
    """Endless seeded batches of documents, one document a row: the feedback set.

    In a pass no document comes twice; what is left at its end and does not fill a batch is left out
    of that pass, so that a batch never holds a document twice either (its halves have to be
    independent).

    Args:
        documents: at least ``batch_size``.
        batch_size: at least 1.
        seed: of the shuffles.
        pad_id: fills rows up, and is never predicted.
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
        self._documents, self._order = documents, Order(count, f"{seed}/feedback")
        self._batch = 0
        lengths = [count, sum(len(document.ids) for document in documents)]
        self._identity = {"seed": seed, "batch_size": batch_size, "documents": lengths}

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        return padded(self.draw(), pad_id=self.pad_id)

    def draw(self) -> list[Document]:
        """The documents of the next batch, before they are laid out."""
        count = len(self._documents)
        # A batch never reaches over the end of a pass, where a document could come twice in it.
        epoch, at = divmod(self._batch, count // self.batch_size)
        start = epoch * count + at * self.batch_size
        self._batch += 1
        return [self._documents[self._order[start + i]] for i in range(self.batch_size)]

    def state_dict(self) -> dict[str, Any]:
        return {"identity": self._identity, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position; ``UserError`` if it is of another seed, batch size or set of
        documents."""
        check_identity(self._where, state["identity"], self._identity)
        self._batch = int(state["batch"])


def _lengths(source: Source, window_tokens: int) -> Sequence[int]:
    """Tokens of each document of a source, all of which a stream can take."""
    documents, where = source.documents, "data.stream"
    if isinstance(documents, StoredDocuments):  # checked when they were laid down
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
