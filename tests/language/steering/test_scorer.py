"""The network over hidden states: its scores do not depend on how many are made at a time."""

from dataclasses import replace

import pytest
import torch

from tests.language.conftest import tiny_batch, tiny_learner
from vpretrain.language.data.batch import laid_out
from vpretrain.language.steering import scorer
from vpretrain.language.steering.rules import Candidates
from vpretrain.language.steering.scorer import CandidateScorer, ScorerInputs


@pytest.fixture
def inputs():
    context = tiny_learner().forward(tiny_batch(rows=4))
    return ScorerInputs.of(Candidates.among(context, 6))


def scored(inputs, gated=True):
    torch.manual_seed(0)
    network = CandidateScorer(32, hidden=16, layers=1, heads=2, gated=gated)
    embedding = torch.randn(96, 32, generator=torch.Generator().manual_seed(1))
    scores, gate = network(inputs, embedding)
    (scores.square().sum() + gate.sum()).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return scores, gate, gradients


def test_few_positions_at_a_time_give_the_same_scores_and_gradients(inputs, monkeypatch):
    whole = scored(inputs)
    monkeypatch.setitem(scorer.CHUNK_ELEMENTS, "cpu", 3 * 6 * 16)
    parts = scored(inputs)
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])
    torch.testing.assert_close(parts[2], whole[2], rtol=1e-4, atol=1e-5)


def test_without_a_gate_it_is_open(inputs):
    assert torch.equal(scored(inputs, gated=False)[1], torch.ones(len(inputs.ids)))


def test_a_score_knows_nothing_of_later_tokens(inputs):
    first = inputs.where[1].min()
    later = inputs.hidden.clone()
    later[:, first + 1 :] = later[:, first + 1 :].flip(-1)
    changed = replace(inputs, hidden=later)
    same = inputs.where[1] == first
    torch.testing.assert_close(scored(changed)[0][same], scored(inputs)[0][same])
    assert not torch.allclose(scored(changed)[0][~same], scored(inputs)[0][~same])


def test_a_score_knows_nothing_of_other_documents_of_its_row():
    documents = tiny_batch(rows=4, length=8).documents
    rows = [documents[:2], documents[2:]]
    batch = laid_out(rows, width=16, pad_id=0, padding_apart=True)
    context = tiny_learner().forward(batch)
    inputs = ScorerInputs.of(Candidates.among(context, 6))
    changed = inputs.hidden.clone()
    changed[batch.document == 0] = changed[batch.document == 0].flip(-1)
    before, after = scored(inputs), scored(replace(inputs, hidden=changed))
    others = context.document != 0
    torch.testing.assert_close(after[0][others], before[0][others])
    torch.testing.assert_close(after[1][others], before[1][others])
    assert not torch.allclose(after[0][~others], before[0][~others])
