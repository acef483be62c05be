"""Selection by predicted values: the regression, what is chosen by it, and what it costs."""

from __future__ import annotations

import pytest
import torch

from tests.language.conftest import downstream, tiny_learner
from tests.language.steering.test_selection import WIDTH, estimator_of, packed_batch, slow_values
from tests.run.test_train import tiny_recipe
from vpretrain.language.data.batch import laid_out
from vpretrain.language.data.rows import Document
from vpretrain.language.steering.amortised import RIDGES, AmortisedSelector, Prediction
from vpretrain.method.reliability import correlation
from vpretrain.system.errors import UserError

TOPICS = {"a": range(3, 20), "b": range(20, 38)}


def topic_batch(seed, rows=3):
    """In each row a document of either topic, whose words are apart."""
    draw = torch.Generator().manual_seed(seed)

    def document(row, topic):
        words = torch.tensor(TOPICS[topic])
        ids = words[torch.randint(0, len(words), (10,), generator=draw)].tolist()
        return Document(ids, [True] * 10, f"{seed}:{row}:{topic}", topic)

    return laid_out(
        [[document(row, "a"), document(row, "b")] for row in range(rows)],
        width=WIDTH,
        pad_id=0,
        padding_apart=True,
    )


@pytest.fixture
def learner():
    return tiny_learner(dtype=torch.float64)


@pytest.fixture
def by_topic(monkeypatch):
    """Documents of a are worth more than those of b."""
    noise = torch.Generator().manual_seed(0)

    def values(self, pool, seen, value_of):
        worth = torch.tensor([1.0 if d.source == "a" else -1.0 for d in pool.documents])
        return (worth + 0.5 * torch.randn(2, len(worth), generator=noise)).double()

    monkeypatch.setattr(AmortisedSelector, "values", values)


def meta_steps(selector, estimator, seeds, batch=topic_batch):
    estimator.renewed = True
    found = [selector.select([batch(seed), batch(seed + 100)], estimator) for seed in seeds]
    estimator.renewed = False
    return found


def sources(selected):
    return [document.source for batch in selected.batches for document in batch.documents]


def test_values_are_predicted_by_ridge_regression_and_its_skill_is_on_documents_left_out():
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(30, 6, generator=draw).double()
    values = features @ torch.randn(6, generator=draw).double() + 0.3 * torch.randn(
        30, generator=draw
    )
    found = Prediction(features, values)
    points = torch.nn.functional.normalize(features - features.mean(dim=0), dim=-1)
    target = values - values.mean()

    def fitted(ridge, kept):
        gram = points[kept].T @ points[kept] + ridge * torch.eye(6).double()
        return torch.linalg.solve(gram, points[kept].T @ target[kept])

    def skill(ridge):
        out = [points[n] @ fitted(ridge, [k for k in range(30) if k != n]) for n in range(30)]
        return correlation(torch.stack(out), values)

    skills = {ridge: skill(ridge) for ridge in RIDGES}
    best = max(skills, key=skills.__getitem__)
    assert found.skill == pytest.approx(skills[best])
    others = torch.randn(4, 6, generator=draw).double()
    placed = torch.nn.functional.normalize(others - features.mean(dim=0), dim=-1)
    expected = values.mean() + placed @ fitted(best, list(range(30)))
    torch.testing.assert_close(found(others), expected)


def test_between_meta_steps_documents_are_chosen_that_are_like_the_valued_ones(learner, by_topic):
    selector, estimator = AmortisedSelector(learner, draws=2), estimator_of(learner, {})
    meta_steps(selector, estimator, range(4))
    later = selector.select([topic_batch(50), topic_batch(51)], estimator)
    chosen = sources(later)
    assert len(chosen) == 6 and chosen.count("a") >= 5  # half of twelve, and six are of a
    assert later.metrics["documents_dropped"] == 6


def test_how_well_it_predicts_is_measured_before_it_learns(learner, by_topic):
    selector, estimator = AmortisedSelector(learner, draws=2), estimator_of(learner, {})
    first, *_, last = meta_steps(selector, estimator, range(4))
    assert "correlation" not in first.metrics and last.metrics["correlation"] > 0.7
    assert last.metrics["gain"] > 0


def test_where_words_tell_nothing_the_first_that_are_drawn_are_taken(learner, monkeypatch):
    noise = torch.Generator().manual_seed(3)
    monkeypatch.setattr(
        AmortisedSelector,
        "values",
        lambda self, pool, *_: torch.randn(2, len(pool.documents), generator=noise).double(),
    )
    selector, estimator = AmortisedSelector(learner, draws=2), estimator_of(learner, {})
    meta_steps(selector, estimator, range(6))
    assert selector.prediction.skill < 0.3
    selector.prediction.skill = 0.0
    drawn = [topic_batch(50), topic_batch(51)]
    (batch,) = selector.select(drawn, estimator).batches
    first = {document.origin for document in drawn[0].documents}
    assert {document.origin for document in batch.documents} == first


def test_at_a_meta_step_the_values_themselves_choose(learner):
    direction = downstream(learner)
    estimator, drawn = estimator_of(learner, direction), [packed_batch(1), packed_batch(2)]
    selected = AmortisedSelector(learner, draws=2).select(drawn, estimator)
    values = slow_values(learner, drawn, direction)
    ranked = sorted(values, key=values.__getitem__, reverse=True)
    chosen = {document.origin for document in selected.batches[0].documents}
    # The last that is taken may not fit beside the others.
    assert set(ranked[:2]) <= chosen <= set(ranked[: len(chosen) + 1])
    assert selected.metrics["value_kept"] > 0  # above the mean of all that were drawn


def test_between_meta_steps_nothing_is_valued(learner, by_topic, monkeypatch):
    selector, estimator = AmortisedSelector(learner, draws=2), estimator_of(learner, {})
    meta_steps(selector, estimator, range(2))
    monkeypatch.setattr(AmortisedSelector, "seen", None)
    monkeypatch.setattr(AmortisedSelector, "values", None)
    selector.select([topic_batch(50), topic_batch(51)], estimator)


def test_it_goes_on_from_its_state_bit_for_bit(learner, by_topic):
    estimator = estimator_of(learner, {})
    first, again = (AmortisedSelector(learner, draws=2) for _ in range(2))
    meta_steps(first, estimator, range(3))
    again.load_state_dict(first.state_dict())
    drawn = [topic_batch(50), topic_batch(51)]
    one, two = (each.select(drawn, estimator).batches[0].digest() for each in (first, again))
    assert one == two


def test_there_is_nothing_to_choose_among_less_than_two_batches():
    with pytest.raises(UserError, match="draws"):
        tiny_recipe("arm=amortised_topk", "designer.draws=1")
