"""Batches: masks, positions, and packing that keeps documents apart."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from transformers import PreTrainedModel
from transformers.masking_utils import find_packed_sequence_indices

from tests.language.conftest import CONFIGS, tiny_model
from tests.language.data.documents import (
    PAD,
    laid_out_by_hand,
    make_documents,
    make_stream,
    same,
)
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import (
    Source,
    Stream,
    TokenBatch,
    padded,
)


def test_padded_batches_equal_their_definition() -> None:
    documents = make_documents("d", [5, 2, 9], prompt=3)
    batch = padded(documents, pad_id=PAD)
    assert batch.input_ids.shape == (3, 9)
    assert same(
        batch, laid_out_by_hand([[document] for document in documents], 9, padding_apart=False)
    )
    assert batch.tokens == 16
    assert batch.predicted_tokens == 2 + 1 + 6


def test_the_masks_of_a_window_by_hand() -> None:
    documents = [
        Document([5, 6, 7, 1], [False, False, True, True], "a:1", "a"),
        Document([8, 9, 1], [True, True, True], "a:2", "a"),
    ]
    stream = Stream(
        [Source("a", documents, 1.0)], batch_size=1, window_tokens=8, seed=0, pad_id=PAD
    )
    batch = next(stream)
    first = batch.documents[0].ids[0] == 5
    assert batch.input_ids.tolist() == [
        [5, 6, 7, 1, 8, 9, 1, 0] if first else [8, 9, 1, 5, 6, 7, 1, 0]
    ]
    assert batch.position_ids.tolist() == [
        [0, 1, 2, 3, 0, 1, 2, 0] if first else [0, 1, 2, 0, 1, 2, 3, 0]
    ]
    assert batch.document.tolist() == [
        [0, 0, 0, 0, 1, 1, 1, -1] if first else [0, 0, 0, 1, 1, 1, 1, -1]
    ]
    a, b = [False, False, True, True], [False, True, True]
    assert batch.predicted.tolist() == [[*a, *b, False] if first else [*b, *a, False]]


def test_transformers_takes_padding_for_documents_of_its_own() -> None:
    stream = make_stream()
    for _ in range(10):
        batch = next(stream)
        result = find_packed_sequence_indices(batch.position_ids)
        assert result is not None
        for row, own in zip(batch.document, result, strict=True):
            # Two tokens are of one sequence exactly if they are of one document; padding is with
            # nothing.
            together = (row[:, None] == row[None, :]) & (row[:, None] >= 0)
            together |= torch.eye(len(row), dtype=torch.bool)
            assert torch.equal(own[:, None] == own[None, :], together)


def test_transformers_takes_a_padded_row_for_one_document() -> None:
    batch = padded(make_documents("d", [5, 2, 9]), pad_id=PAD)
    assert find_packed_sequence_indices(batch.position_ids) is None


@pytest.fixture(
    scope="module", params=list(product(sorted(CONFIGS), ["sdpa", "eager"])), ids="-".join
)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Rotary positions with and without tied embeddings, and learned ones, under either
    attention.
    """
    family, attention = request.param
    return tiny_model(family, attention=attention).eval()


@torch.no_grad()
def token_losses(model: PreTrainedModel, batch: TokenBatch) -> list[list[float]]:
    """NLL of every predicted token, by document."""
    logits = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).logits
    log_p = logits[:, :-1][batch.predicted[:, 1:]].log_softmax(-1)
    losses = -log_p.gather(1, batch.input_ids[batch.predicted][:, None])[:, 0]
    of = batch.document[batch.predicted]
    return [losses[of == i].tolist() for i in range(len(batch.documents))]


@torch.no_grad()
def alone(model: PreTrainedModel, document: Document) -> list[float]:
    """The same for one document by itself, without anything of a batch."""
    log_p = model(input_ids=torch.tensor([document.ids])).logits[0].log_softmax(-1)
    return [
        -float(log_p[t - 1, document.ids[t]])
        for t in range(1, len(document.ids))
        if document.predicted[t]
    ]


def test_packing_equals_one_document_at_a_time(model: PreTrainedModel) -> None:
    stream = make_stream(batch_size=4)
    compared = 0
    for _ in range(5):
        batch = next(stream)
        assert len(batch.documents) > 4, "some window holds several documents"
        for document, losses in zip(batch.documents, token_losses(model, batch), strict=True):
            assert losses == pytest.approx(alone(model, document), abs=1e-5)
            compared += len(losses)
    assert compared > 200


def test_padding_equals_one_document_at_a_time(model: PreTrainedModel) -> None:
    documents = make_documents("d", [5, 2, 19, 11], prompt=3)
    for document, losses in zip(
        documents, token_losses(model, padded(documents, pad_id=PAD)), strict=True
    ):
        assert losses == pytest.approx(alone(model, document), abs=1e-5)


def test_a_digest_tells_ids_masks_and_shapes_apart() -> None:
    batch = next(make_stream())
    assert batch.digest() == next(make_stream()).digest()
    assert len(batch.digest()) == 16
    ids, mask = batch.input_ids.clone(), batch.predicted.clone()
    ids[0, 3] += 1
    mask[0, 1] ^= True
    others = [
        TokenBatch(ids, batch.predicted, batch.position_ids, batch.document, batch.documents),
        TokenBatch(batch.input_ids, mask, batch.position_ids, batch.document, batch.documents),
        TokenBatch(
            batch.input_ids.T,
            batch.predicted.T,
            batch.position_ids,
            batch.document,
            batch.documents,
        ),
    ]
    assert len({batch.digest(), *(other.digest() for other in others)}) == 4


def test_a_batch_moves_to_a_device_whole() -> None:
    batch = next(make_stream())
    assert same(batch.to("cpu"), batch)
    moved = batch.to("meta")
    tensors = [moved.input_ids, moved.predicted, moved.position_ids, moved.document]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_the_device_does_not_change_a_digest() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    batch = next(make_stream())
    assert batch.to("cuda").digest() == batch.digest()
