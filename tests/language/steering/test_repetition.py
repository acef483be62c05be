"""Repetition: what is kept, how often it is trained on again, and what it costs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.language.conftest import downstream, tiny_batch, tiny_learner
from tests.language.steering.test_selection import (
    WIDTH,
    estimator_of,
    packed_batch,
    slow_values,
)
from tests.run.test_train import tiny_recipe, trained
from vpretrain.language import Language
from vpretrain.language.data.batch import laid_out
from vpretrain.language.data.rows import Document
from vpretrain.language.steering.repetition import RepeatSelector
from vpretrain.system.errors import UserError

PERIOD = 4


def selector_of(learner, *, fraction=0.5, repeats=4, seed=0):
    return RepeatSelector(learner, fraction=fraction, repeats=repeats, period=PERIOD, seed=seed)


def origins(selected):
    return [document.origin for batch in selected.batches for document in batch.documents]


def stretch(selector, estimator, drawn):
    """A meta step on the first batch, and the steps until the next."""
    return [
        selector.select([batch], estimator, meta_step=at == 0, used=True)
        for at, batch in enumerate(drawn)
    ]


@pytest.fixture
def learner():
    return tiny_learner(dtype=torch.float64)


def test_the_best_of_a_meta_steps_documents_are_trained_on_again(learner):
    direction = downstream(learner)
    drawn = [packed_batch(seed, rows=3) for seed in range(PERIOD)]
    selector = selector_of(learner)
    steps = stretch(selector, estimator_of(learner, direction), drawn)
    values = slow_values(learner, drawn[:1], direction)
    ranked = sorted(values, key=values.__getitem__, reverse=True)
    best, times = set(ranked[: len(ranked) // 2]), Counter()
    for number, step in enumerate(steps[1:], 1):
        fresh = {document.origin for document in drawn[number].documents}
        again = set(origins(step)) - fresh
        assert again and again <= best and set(origins(step)) & fresh
        times.update(again)
    # Each as often as the others, give or take once.
    assert set(times) == best and max(times.values()) - min(times.values()) <= 1


def test_a_step_is_as_large_as_the_plain_one(learner):
    drawn = [packed_batch(seed, rows=3) for seed in range(PERIOD)]
    steps = stretch(selector_of(learner), estimator_of(learner, downstream(learner)), drawn)
    longest = max(len(document.ids) for batch in drawn for document in batch.documents)
    for batch, step in zip(drawn, steps, strict=True):
        (trained_on,) = step.batches
        assert trained_on.input_ids.shape == batch.input_ids.shape
        assert abs(trained_on.tokens - batch.tokens) <= longest
    assert steps[0].metrics["repeated"] == 0  # nothing was kept before it
    assert all(0.3 < step.metrics["repeated"] < 0.7 for step in steps[1:])


def test_a_document_is_trained_on_again_as_often_as_it_says_and_no_more(learner):
    direction = downstream(learner)
    drawn = [packed_batch(seed, rows=3) for seed in range(3 * PERIOD)]
    selector = selector_of(learner, repeats=2)
    steps = stretch(selector, estimator_of(learner, direction), drawn)
    ones = {document.origin for document in drawn[0].documents}
    times = Counter(name for step in steps[1:] for name in origins(step) if name in ones)
    assert times and max(times.values()) <= 2
    assert (
        not selector.remembered and steps[-1].metrics["repeated"] == 0
    )  # and plain steps after that
    assert sorted(origins(steps[-1])) == sorted(d.origin for d in drawn[-1].documents)


@pytest.mark.parametrize("alignment", ["cosine", "lower_bound"])
def test_values_that_cannot_be_compared_between_batches_are_refused(materials, alignment):
    recipe = tiny_recipe("arm=repeat_topk", f"value.alignment={alignment}")
    with pytest.raises(
        UserError, match=rf"(?s)value\.alignment.*{alignment}.*dot, optimizer_aware"
    ):
        Language().build(recipe, materials)


def test_between_meta_steps_nothing_is_valued(learner, monkeypatch):
    estimator, calls = estimator_of(learner, downstream(learner)), []
    forward = RepeatSelector.one_hot_tasks
    monkeypatch.setattr(
        RepeatSelector,
        "one_hot_tasks",
        lambda self, drawn: calls.append(len(drawn)) or forward(self, drawn),
    )
    drawn = [packed_batch(seed, rows=3) for seed in range(PERIOD)]
    stretch(selector_of(learner), estimator, drawn)
    assert calls == [1]


def test_better_documents_take_the_places_of_those_that_were_kept(learner):
    direction = downstream(learner)
    selector = selector_of(learner, repeats=PERIOD)
    first, second = packed_batch(1, rows=3), packed_batch(2, rows=3)
    stretch(selector, estimator_of(learner, direction), [first])
    before = {kept.document.origin: kept.value for kept in selector.remembered}
    stretch(selector, estimator_of(learner, direction), [second])
    after = {kept.document.origin: kept.value for kept in selector.remembered}
    assert len(after) <= len(before) and set(after) - set(before)
    gone = [value for name, value in before.items() if name not in after]
    assert gone and max(gone) <= min(after.values())


def test_it_goes_on_from_its_state_bit_for_bit(learner):
    estimator = estimator_of(learner, downstream(learner))
    drawn = [packed_batch(seed, rows=3) for seed in range(PERIOD)]
    whole, first = selector_of(learner, seed=3), selector_of(learner, seed=3)
    expected = [step.batches[0].digest() for step in stretch(whole, estimator, drawn)]
    stretch(first, estimator, drawn[:2])
    again = selector_of(learner, seed=9)
    again.load_state_dict(first.state_dict())
    result = [
        again.select([batch], estimator, meta_step=False, used=True).batches[0].digest()
        for batch in drawn[2:]
    ]
    assert result == expected[2:]


def test_a_choice_that_is_not_trained_on_uses_no_repeat_up(learner):
    estimator, selector = estimator_of(learner, downstream(learner)), selector_of(learner)
    drawn = [packed_batch(seed, rows=3) for seed in range(2)]
    stretch(selector, estimator, drawn[:1])
    before = [(kept.document.origin, kept.remaining) for kept in selector.remembered]
    shut = selector.select([drawn[1]], estimator, meta_step=False, used=False)
    assert (
        before
        and [(kept.document.origin, kept.remaining) for kept in selector.remembered] == before
    )
    assert shut.metrics == {}


def test_all_of_a_batch_can_be_repeated(learner):
    drawn = [packed_batch(seed, rows=3) for seed in range(PERIOD)]
    selector = selector_of(learner, fraction=1.0, repeats=8)
    steps = stretch(selector, estimator_of(learner, downstream(learner)), drawn)
    ones = {document.origin for document in drawn[0].documents}
    assert set(origins(steps[1])) == ones and steps[1].metrics["repeated"] == 1


def test_there_is_no_gain_where_all_documents_are_kept(learner):
    """It would be a rounding error, and the guard closes on a negative one."""
    estimator = estimator_of(learner, downstream(learner), downstream(learner, seed=8))
    selector, drawn = selector_of(learner, fraction=1.0, repeats=8), [packed_batch(1, rows=3)]
    metrics = selector.select(drawn, estimator, meta_step=True, used=True).metrics
    assert "gain" not in metrics and "agreement" in metrics


def test_one_document_a_row_where_nothing_is_packed(learner):
    learner.packed = False
    drawn = [tiny_batch(rows=4, seed=seed) for seed in range(PERIOD)]
    steps = stretch(selector_of(learner), estimator_of(learner, downstream(learner)), drawn)
    assert all(len(step.batches[0].documents) == 4 for step in steps)
    assert 0 < steps[1].metrics["repeated"] < 1


def test_a_document_as_long_as_a_window_leaves_room_for_others(learner):
    ids = torch.randint(3, 40, (WIDTH,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = [
        laid_out(
            [[Document(ids, [True] * WIDTH, f"{seed}:{row}", "a")] for row in range(2)],
            width=WIDTH,
            pad_id=0,
            padding_apart=True,
        )
        for seed in range(PERIOD)
    ]
    steps = stretch(selector_of(learner), estimator_of(learner, downstream(learner)), whole)
    for step in steps:
        (batch,) = step.batches
        assert batch.input_ids.shape == (2, WIDTH) and len(batch.documents) == 2


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


def test_it_draws_no_more_than_it_trains_on(materials):
    result = trained(materials, "arm=repeat_topk", "budget.steps=6")[1]
    assert result.draws == 1 and result.drawn == pytest.approx(result.spent.tokens, rel=0.2)


def test_repeats_that_would_keep_every_document_are_refused(materials):
    recipe = tiny_recipe("arm=repeat_topk", "value.meta_period=32")
    with pytest.raises(UserError, match=r"(?s)designer\.repeats.*none is chosen.*17 or more"):
        Language().build(recipe, materials)
    assert [problem.where for problem in Language().check(recipe).problems] == ["designer.repeats"]
    Language().build(tiny_recipe("arm=repeat_topk", "value.meta_period=15"), materials)


@pytest.mark.parametrize("override", ["fraction=0", "fraction=1.1", "repeats=0"])
def test_fractions_and_repeats_out_of_range_are_refused(override):
    with pytest.raises(UserError, match=override.partition("=")[0]):
        tiny_recipe("arm=repeat_topk", f"designer.{override}")
