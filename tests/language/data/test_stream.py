"""The stream: mixture, determinism, exact resume, ranks that share a batch, and what is refused."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.language.data.documents import PAD, WINDOW, make_documents, make_stream, origins, same
from vpretrain.language.data.row_store import StoredDocuments
from vpretrain.language.data.rows import Document, Row
from vpretrain.language.data.stream import LOOKAHEAD_DOCUMENTS, Sampler, Source, Stream, padded
from vpretrain.system.errors import UserError


@pytest.mark.parametrize("weights", [(2.0, 1.0), (0.5, 0.5), (0.9, 0.1), (1.0, 0.0), (3, 1)])
def test_every_stretch_holds_the_weights(weights: tuple[float, float]) -> None:
    stream = make_stream(weights=weights)
    fraction = weights[0] / sum(weights)
    seen: Counter[str] = Counter()
    for _ in range(100):
        seen.update(document.source for document in next(stream).documents)
        # The sequence is within one document of its share; the packer holds 16 back.
        assert abs(seen["many"] - fraction * seen.total()) <= 1 + LOOKAHEAD_DOCUMENTS
    assert seen["many"] / seen.total() == pytest.approx(fraction, abs=0.05)
    assert (seen["few"] == 0) == (weights[1] == 0)


@given(weights=st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any))
@settings(deadline=None, max_examples=50)
def test_drawn_counts_never_stray_from_their_shares(weights: list[int]) -> None:
    documents = make_documents("d", [4, 4, 4])
    sources = [Source(f"s{i}", documents, weight) for i, weight in enumerate(weights)]
    stream = Stream(sources, batch_size=1, window_tokens=4, seed=0, pad_id=PAD)
    for _ in range(60):
        next(stream)
        drawn = stream.state_dict()["drawn"]
        for count, weight in zip(drawn, weights, strict=True):
            off = count - sum(drawn) * weight / sum(weights)
            assert -len(weights) + 1 - 1e-9 <= off < 1


def test_the_same_seed_gives_the_same_batches_and_another_seed_others() -> None:
    a, b, other = make_stream(seed=3), make_stream(seed=3), make_stream(seed=4)
    digests = [[next(stream).digest() for _ in range(30)] for stream in (a, b, other)]
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])


def test_passes_differ_and_so_do_sources_with_equal_documents() -> None:
    documents = make_documents("d", [8] * 30)
    sources = [Source(name, documents, 1.0) for name in ("a", "b")]
    stream = Stream(sources, batch_size=1, window_tokens=8, seed=0, pad_id=PAD)
    sequence = origins(stream, 120)
    a, b = sequence[0::2], sequence[1::2]
    passes = [tuple(part[i : i + 30]) for part in (a, b) for i in (0, 30)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert len(set(passes)) == 4


def test_the_order_of_a_source_does_not_depend_on_the_others() -> None:
    documents = make_documents("d", [8] * 30)
    extra = Source("extra", make_documents("x", [8] * 5), 1.0)
    alone, mixed = (
        Stream(sources, batch_size=1, window_tokens=8, seed=0, pad_id=PAD)
        for sources in ([Source("d", documents, 1.0)], [extra, Source("d", documents, 1.0)])
    )
    assert origins(alone, 50) == [
        origin for origin in origins(mixed, 100) if origin.startswith("d")
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 10])
def test_the_batch_size_changes_no_window(batch_size: int) -> None:
    one = make_stream(batch_size=1)
    stream = make_stream(batch_size=batch_size)
    for _ in range(60 // batch_size):
        batch = next(stream)
        for row in range(batch_size):
            assert torch.equal(batch.input_ids[row], next(one).input_ids[0])


def test_a_stream_is_its_own_iterator() -> None:
    stream = make_stream()
    assert [batch.digest() for batch, _ in zip(stream, range(3), strict=False)] == [
        batch.digest() for batch, _ in zip(make_stream(), range(3), strict=False)
    ]


@given(before=st.integers(0, 60), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_a_resumed_stream_goes_on_bit_for_bit(before: int, seed: int) -> None:
    stream = make_stream(seed=seed)
    for _ in range(before):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = make_stream(seed=seed)
    next(resumed)  # wherever it stood before
    resumed.load_state_dict(state)
    assert resumed.state_dict() == stream.state_dict()
    for _ in range(25):
        assert same(next(resumed), next(stream))


def test_a_state_is_not_changed_by_what_follows() -> None:
    stream = make_stream()
    next(stream)
    state = stream.state_dict()
    kept = json.dumps(state)
    next(stream)
    assert json.dumps(state) == kept


def test_a_state_resumes_with_another_batch_size() -> None:
    stream = make_stream(batch_size=4)
    next(stream)
    resumed = make_stream(batch_size=2)
    resumed.load_state_dict(stream.state_dict())
    for _ in range(5):
        halves = [next(resumed).input_ids for _ in range(2)]
        assert torch.equal(torch.cat(halves), next(stream).input_ids)


@pytest.mark.parametrize("other", [{"seed": 1}, {"weights": (1.0, 1.0)}])
def test_a_state_of_another_stream_is_refused(other: dict[str, object]) -> None:
    state = make_stream(**other).state_dict()  # type: ignore[arg-type]
    stream = make_stream()
    with pytest.raises(UserError, match=r"data\.stream: (seed|sources): not as in the checkpoint"):
        stream.load_state_dict(state)
    assert next(stream).digest() == next(make_stream()).digest(), (
        "a refused state leaves it as it was"
    )


def ranked(rank: int, world: int, *, batch_size: int = 8, seed: int = 0) -> Stream:
    many = make_documents("many", [2 + (7 * i) % 22 for i in range(40)], prompt=2)
    few = make_documents("few", [3, 24, 11])
    sources = [Source("many", many, 2.0), Source("few", few, 1.0)]
    return Stream(
        sources,
        batch_size=batch_size,
        window_tokens=WINDOW,
        seed=seed,
        pad_id=PAD,
        rank=rank,
        world=world,
    )


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_together_see_the_batch_of_one_process(world: int) -> None:
    whole, parts = make_stream(batch_size=8), [ranked(rank, world) for rank in range(world)]
    for _ in range(12):
        batch, fractions = next(whole), [next(part) for part in parts]
        for name in ("input_ids", "predicted", "position_ids"):
            together = torch.stack(
                [getattr(fraction, name) for fraction in fractions], dim=1
            ).flatten(0, 1)
            assert torch.equal(together, getattr(batch, name))
        assert sorted(d.origin for d in batch.documents) == sorted(
            d.origin for s in fractions for d in s.documents
        )
        assert all(part.state_dict() == whole.state_dict() for part in parts), (
            "one position, whoever asks"
        )


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_a_run_resumes_on_another_number_of_ranks(before: int, after: int) -> None:
    whole, saving = ranked(0, 1), ranked(before - 1, before)
    for _ in range(7):
        next(whole), next(saving)
    state = json.loads(json.dumps(saving.state_dict()))
    resumed = [ranked(rank, after) for rank in range(after)]
    for part in resumed:
        part.load_state_dict(state)
    for _ in range(5):
        together = torch.stack([next(part).input_ids for part in resumed], dim=1).flatten(0, 1)
        assert torch.equal(together, next(whole).input_ids)


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="3 ranks cannot share a batch evenly") as caught:
        ranked(0, 3)
    assert (caught.value.problems[0].where, caught.value.problems[0].accepted) == (
        "data.batch_size",
        "a multiple of 3",
    )
    with pytest.raises(ValueError, match="rank 2 of 2"):
        ranked(2, 2)


def test_documents_on_disk_give_the_same_batches() -> None:
    documents = make_documents("many", [2 + (7 * i) % 22 for i in range(40)], prompt=2)
    stored = StoredDocuments("many")
    for document in documents:
        row = Row("", "", document.origin, "many")
        stored.keep(list(document.ids), bytes(document.predicted), row)
    one, other = (
        Stream(
            [Source("many", result, 1.0)], batch_size=3, window_tokens=WINDOW, seed=0, pad_id=PAD
        )
        for result in (documents, stored)
    )
    for _ in range(30):
        batch, same_batch = next(one), next(other)
        assert batch.digest() == same_batch.digest()
        assert torch.equal(batch.position_ids, same_batch.position_ids)
        assert [d.origin for d in batch.documents] == [d.origin for d in same_batch.documents]
    resumed = Stream(
        [Source("many", stored, 1.0)], batch_size=3, window_tokens=WINDOW, seed=0, pad_id=PAD
    )
    resumed.load_state_dict(one.state_dict())
    assert next(resumed).digest() == next(one).digest()


def stream_of(*sources: Source) -> Stream:
    return Stream(sources, batch_size=1, window_tokens=8, seed=0, pad_id=PAD)


def test_no_source_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        stream_of()


def test_an_empty_source_is_named() -> None:
    documents = make_documents("full", [4])
    with pytest.raises(UserError, match=r"source 'hollow' holds no documents") as caught:
        stream_of(Source("full", documents, 1.0), Source("hollow", [], 0.0))
    assert caught.value.problems[0].where == "data.stream"


def test_weights_that_are_all_zero_are_refused() -> None:
    documents = make_documents("d", [4])
    with pytest.raises(UserError, match=r"all weights are zero") as caught:
        stream_of(Source("a", documents, 0.0), Source("b", documents, 0))
    assert caught.value.problems[0].value == "{'a': 0.0, 'b': 0}"


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"weight of source 'd' is no share") as caught:
        stream_of(Source("d", make_documents("d", [4]), weight))
    assert caught.value.problems[0].value == repr(weight)


def test_two_sources_of_one_name_are_refused() -> None:
    documents = make_documents("d", [4])
    with pytest.raises(UserError, match="two sources have this name"):
        stream_of(Source("d", documents, 1.0), Source("d", documents, 1.0))


def test_a_document_longer_than_the_window_is_refused() -> None:
    with pytest.raises(UserError, match=r"d:1 is longer than the window") as caught:
        stream_of(Source("d", make_documents("d", [4, 9]), 1.0))
    assert caught.value.problems[0].value == "9 tokens"
    assert caught.value.problems[0].accepted == "at most 8 tokens"


@pytest.mark.parametrize("predicted", [[False, False], [True, False]])
def test_a_document_without_anything_to_predict_is_refused(predicted: list[bool]) -> None:
    document = Document([3, 4], predicted, "d:7", "d")
    with pytest.raises(UserError, match=r"d:7 has no token to predict"):
        stream_of(Source("d", [document], 1.0))
    with pytest.raises(UserError, match=r"d:7 has no token to predict"):
        Sampler([document], batch_size=1, seed=0, pad_id=PAD)
    with pytest.raises(ValueError, match=r"nothing to predict in this batch: d:7"):
        padded([document], pad_id=PAD)


def test_programming_errors_are_value_errors() -> None:
    documents = make_documents("d", [4])
    with pytest.raises(ValueError, match="0 x 8"):
        Stream([Source("d", documents, 1.0)], batch_size=0, window_tokens=8, seed=0, pad_id=PAD)
    with pytest.raises(ValueError, match="1 x 1"):
        Stream([Source("d", documents, 1.0)], batch_size=1, window_tokens=1, seed=0, pad_id=PAD)
    with pytest.raises(ValueError, match="batch_size=0"):
        Sampler(documents, batch_size=0, seed=0, pad_id=PAD)
    with pytest.raises(ValueError, match="at least one document"):
        padded([], pad_id=PAD)
    with pytest.raises(ValueError, match="d:0: 2 tokens, but a mask of 3"):
        stream_of(Source("d", [Document([1, 2], [True] * 3, "d:0", "d")], 1.0))
