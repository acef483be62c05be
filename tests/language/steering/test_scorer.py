"""The network over hidden states: its scores do not depend on how many are made at a time."""

from dataclasses import replace

import pytest
import torch

from tests.language.conftest import tiny_batch, tiny_learner
from vpretrain.language.data.batch import laid_out
from vpretrain.language.steering import scorer
from vpretrain.language.steering.scorer import CandidateScorer, Lesson


@pytest.fixture
def lesson():
    context = tiny_learner().forward(tiny_batch(rows=4))
    ids = context.predictions.candidates(6)
    return Lesson.of(context, ids, context.predictions.log_p(ids))


def scored(lesson, gated=True):
    torch.manual_seed(0)
    network = CandidateScorer(32, hidden=16, layers=1, heads=2, gated=gated)
    embedding = torch.randn(96, 32, generator=torch.Generator().manual_seed(1))
    scores, gate = network(lesson, embedding)
    (scores.square().sum() + gate.sum()).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return scores, gate, gradients


def test_few_positions_at_a_time_give_the_same_scores_and_gradients(lesson, monkeypatch):
    whole = scored(lesson)
    monkeypatch.setitem(scorer.CHUNK_ELEMENTS, "cpu", 3 * 6 * 16)
    parts = scored(lesson)
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])
    torch.testing.assert_close(parts[2], whole[2], rtol=1e-4, atol=1e-5)


def test_without_a_gate_it_is_open(lesson):
    assert torch.equal(scored(lesson, gated=False)[1], torch.ones(len(lesson.ids)))


def test_a_score_knows_nothing_of_later_tokens(lesson):
    first = lesson.where[1].min()
    later = lesson.hidden.clone()
    later[:, first + 1 :] += 1.0
    changed = replace(lesson, hidden=later)
    same = lesson.where[1] == first
    torch.testing.assert_close(scored(changed)[0][same], scored(lesson)[0][same])
    assert not torch.allclose(scored(changed)[0][~same], scored(lesson)[0][~same])


def test_a_score_knows_nothing_of_other_documents_of_its_row():
    documents = tiny_batch(rows=4, length=8).documents
    rows = [documents[:2], documents[2:]]
    batch = laid_out(rows, width=16, pad_id=0, padding_apart=True)
    context = tiny_learner().forward(batch)
    ids = context.predictions.candidates(6)
    lesson = Lesson.of(context, ids, context.predictions.log_p(ids))
    changed = lesson.hidden.clone()
    changed[batch.document == 0] += 1.0
    before, after = scored(lesson), scored(replace(lesson, hidden=changed))
    others = context.document != 0
    torch.testing.assert_close(after[0][others], before[0][others])
    torch.testing.assert_close(after[1][others], before[1][others])
    assert not torch.allclose(after[0][~others], before[0][~others])
