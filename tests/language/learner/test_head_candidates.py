"""The best tokens of a row of scores, and the scores of given ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.language.learner.slow_head import WIDE, gradients, next_batches, same
from vpretrain.language.learner.head_candidates import candidate_scores, top


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3000), st.integers(0, 99), st.data())
def test_top_of_blocks_is_the_top_of_all(n, vocabulary, seed, data):
    count = data.draw(st.integers(1, min(vocabulary, 80)))
    scores = torch.randint(
        -40, 40, (n, vocabulary), generator=torch.Generator().manual_seed(seed)
    ).double()
    ids = top(scores, count)
    assert torch.equal(scores.gather(1, ids), scores.topk(count, dim=1).values)
    assert all(len(set(row)) == count for row in ids.tolist())


@pytest.mark.parametrize("n", [1, 5, 9])
def test_candidate_scores(n):
    hidden, weight, _, _ = next_batches(n, 40)
    ids = torch.randint(40, (n, 7), generator=torch.Generator().manual_seed(0))
    result, expected = (
        candidate_scores(hidden, weight, ids),
        torch.einsum("nd,nkd->nk", hidden, weight[ids]),
    )
    same([result], [expected])
    slope = torch.rand(n, 7, dtype=WIDE)
    same(
        gradients((result * slope).sum(), (hidden,)), gradients((expected * slope).sum(), (hidden,))
    )
