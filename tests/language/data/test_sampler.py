"""Batches of feedback: passes without repetition, padding, exact resume, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.language.data.documents import PAD, make_documents, same
from vpretrain.language.data.stream import Sampler, padded
from vpretrain.system.errors import UserError


def make_sampler(count: int = 10, batch_size: int = 4, seed: int = 0) -> Sampler:
    documents = make_documents("f", [3 + i % 5 for i in range(count)], prompt=1)
    return Sampler(documents, batch_size=batch_size, seed=seed, pad_id=PAD)


@given(count=st.integers(1, 30), batch_size=st.integers(1, 30), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_a_pass_of_the_sampler_has_no_document_twice(
    count: int, batch_size: int, seed: int
) -> None:
    batch_size = min(batch_size, count)
    sampler = make_sampler(count, batch_size, seed)
    for _ in range(3):
        one_pass = [
            document.origin
            for _ in range(count // batch_size)
            for document in next(sampler).documents
        ]
        assert len(set(one_pass)) == len(one_pass) == count // batch_size * batch_size


def test_the_sampler_pads_and_differs_between_passes_and_seeds() -> None:
    batches = [next(make_sampler(seed=seed)) for seed in (0, 0, 1)]
    assert same(batches[0], padded(batches[0].documents, pad_id=PAD))
    assert same(batches[0], batches[1])
    assert not same(batches[0], batches[2])
    sampler = make_sampler(batch_size=10)
    passes = [
        tuple(document.origin for document in batch.documents)
        for batch, _ in zip(sampler, range(5), strict=False)
    ]
    assert len(set(passes)) == 5


@pytest.mark.parametrize("before", [0, 1, 2, 3, 7])
def test_a_resumed_sampler_goes_on_bit_for_bit(before: int) -> None:
    sampler = make_sampler()
    for _ in range(before):
        next(sampler)
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = make_sampler()
    resumed.load_state_dict(state)
    for _ in range(9):
        assert same(next(resumed), next(sampler))


@pytest.mark.parametrize("other", [{"seed": 1}, {"count": 11}, {"batch_size": 5}])
def test_a_state_of_another_sampler_is_refused(other: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"data\.feedback: \w+: not as in the checkpoint"):
        make_sampler().load_state_dict(make_sampler(**other).state_dict())


def test_a_batch_larger_than_the_feedback_set_is_refused() -> None:
    with pytest.raises(UserError, match="one batch of 4 takes more than there are") as caught:
        make_sampler(count=3)
    (problem,) = caught.value.problems
    assert (problem.where, problem.value) == ("data.feedback", "3 documents")
