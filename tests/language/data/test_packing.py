"""Packing: whole documents in windows, kept apart, none for ever late, and little wasted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.language.data.documents import (
    PAD,
    WINDOW,
    laid_out_by_hand,
    make_documents,
    make_stream,
    origins,
    same,
    windows_of,
)
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import LOOKAHEAD_DOCUMENTS, Source, Stream


def test_packed_batches_equal_their_definition() -> None:
    stream = make_stream()
    for _ in range(20):
        batch = next(stream)
        assert batch.input_ids.shape == (3, WINDOW)
        assert (
            batch.input_ids.dtype == batch.position_ids.dtype == batch.document.dtype == torch.int64
        )
        assert batch.predicted.dtype == torch.bool
        assert same(batch, laid_out_by_hand(windows_of(batch), WINDOW, padding_apart=True))
        assert batch.tokens == sum(len(document.ids) for document in batch.documents)
        assert batch.predicted_tokens == sum(
            sum(document.predicted[1:]) for document in batch.documents
        )


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=60),
    spare=st.integers(0, 20),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=150)
def test_packing_invariants(lengths: list[int], spare: int, batch_size: int, seed: int) -> None:
    documents = make_documents("d", lengths)
    window = max(lengths) + spare
    stream = Stream(
        [Source("d", documents, 1.0)],
        batch_size=batch_size,
        window_tokens=window,
        seed=seed,
        pad_id=PAD,
    )
    seen: list[str] = []
    while len(seen) < 3 * len(documents) + LOOKAHEAD_DOCUMENTS:
        batch = next(stream)
        # Whole documents, in order within their window, one after the other, then padding.
        assert same(batch, laid_out_by_hand(windows_of(batch), window, padding_apart=True))
        assert all(windows_of(batch))
        assert batch.predicted_tokens > 0
        seen += [document.origin for document in batch.documents]

    # Once a pass: all that was drawn came out or still waits, and no pass over the source repeats a
    # document.
    state = stream.state_dict()
    drawn = sequence_of(documents, seed, state["drawn"][0])
    waiting = [drawn[number] for _, number in state["pending"]]
    assert Counter(seen) + Counter(waiting) == Counter(drawn)
    for start in range(0, len(drawn), len(documents)):
        one_pass = drawn[start : start + len(documents)]
        assert len(set(one_pass)) == len(one_pass)
    assert len(waiting) == LOOKAHEAD_DOCUMENTS


def sequence_of(documents: Sequence[Document], seed: int, count: int) -> list[str]:
    """What is drawn, as a packer without a choice shows it: every document is as long as a
    window.
    """
    unit = [
        Document([1, 1], [True, True], document.origin, document.source) for document in documents
    ]
    stream = Stream([Source("d", unit, 1.0)], batch_size=1, window_tokens=2, seed=seed, pad_id=PAD)
    return origins(stream, count)


def test_a_document_waits_at_most_as_many_windows_as_are_pending() -> None:
    # A document that fills a window alone is overtaken by short ones, but not for ever.
    documents = make_documents("d", [10] + [3] * 99)
    stream = Stream(
        [Source("d", documents, 1.0)], batch_size=1, window_tokens=10, seed=1, pad_id=PAD
    )
    windows = [next(stream).documents for _ in range(400)]
    at = [i for i, window in enumerate(windows) if window[0].origin == "d:0"]
    assert len(at) >= 11
    assert all(len(windows[i]) == 1 for i in at)
    # 99 short ones take 33 windows, so that a pass takes 34; it can be late by the look-ahead and
    # no more.
    assert max(b - a for a, b in pairwise(at)) <= 68 + LOOKAHEAD_DOCUMENTS


def test_looking_ahead_wastes_little() -> None:
    window = 64
    generator = torch.Generator().manual_seed(0)
    documents = make_documents(
        "d", torch.randint(2, window + 1, (500,), generator=generator).tolist()
    )
    stream = Stream(
        [Source("d", documents, 1.0)], batch_size=8, window_tokens=window, seed=0, pad_id=PAD
    )
    batches = [next(stream) for _ in range(60)]
    filled = sum(batch.tokens for batch in batches) / (len(batches) * 8 * window)
    assert filled > 0.9
    assert next_fit(documents, window) < 0.8


def next_fit(documents: Sequence[Document], window: int) -> float:
    """The filled share if whatever does not fit starts the next window."""
    windows, room = 1, window
    for document in documents:
        if len(document.ids) > room:
            windows, room = windows + 1, window
        room -= len(document.ids)
    return sum(len(document.ids) for document in documents) / (windows * window)


def test_without_packing_every_row_is_one_document():
    """Rows are as long as the longest document of the whole batch, on every rank."""
    documents = [
        Document([3] * size, [False] + [True] * (size - 1), f"d:{size}", "d")
        for size in range(3, 11)
    ]
    sources = [Source("d", documents, 1.0)]
    whole = Stream(sources, batch_size=4, window_tokens=16, seed=0, pad_id=0, packing=False)
    parts = [
        Stream(
            sources,
            batch_size=4,
            window_tokens=16,
            seed=0,
            pad_id=0,
            packing=False,
            rank=rank,
            world=2,
        )
        for rank in range(2)
    ]
    seen = []
    for _ in range(2):
        batch, halves = next(whole), [next(part) for part in parts]
        lengths = [len(document.ids) for document in batch.documents]
        assert batch.input_ids.shape == (4, max(lengths))
        assert all(half.input_ids.shape[1] == max(lengths) for half in halves)
        assert torch.equal(batch.input_ids[0::2], halves[0].input_ids)
        assert torch.equal(batch.document[:, 0], torch.arange(4))
        seen += lengths
    assert sorted(seen) == list(range(3, 11))
    state = whole.state_dict()
    after = next(whole)
    whole.load_state_dict(state)
    assert torch.equal(next(whole).input_ids, after.input_ids)
