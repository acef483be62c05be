"""Selection: values of documents, what is chosen by them, and how the batch is laid out."""

import dataclasses
import logging

import pytest
import torch

from tests.language.conftest import downstream, tiny_batch, tiny_learner
from tests.run.test_train import tiny_recipe, trained, weights_hash
from vpretrain.language import Language
from vpretrain.language.data.batch import laid_out
from vpretrain.language.data.pool import Pool
from vpretrain.language.data.rows import Document
from vpretrain.language.feedback.likelihood import shuffled
from vpretrain.language.steering.greats import AtRandom, Highest
from vpretrain.language.steering.opus import Boltzmann
from vpretrain.language.steering.selection import (
    STARVED_DOCUMENTS,
    DocumentSelector,
    Redundancy,
)
from vpretrain.method.accumulation import next_batches
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.rules import standardised
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.method.vectors import combine, inner
from vpretrain.run.build import new_step
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import UserError

WIDTH = 24


def packed_batch(seed, rows=2, source="a", loss_mean="token"):
    """Rows of two documents each, of unlike lengths."""
    generator = torch.Generator().manual_seed(seed)

    def document(row, size):
        ids = torch.randint(3, 40, (size,), generator=generator).tolist()
        predicted = [at >= size // 3 for at in range(size)]
        return Document(ids, predicted, f"{seed}:{row}:{size}", source)

    return laid_out(
        [[document(row, 8 + row), document(row, 11 + row)] for row in range(rows)],
        width=WIDTH,
        pad_id=0,
        padding_apart=True,
        loss_mean=loss_mean,
    )


def estimator_of(learner, *gradients):
    result = ValueEstimator(learner, Alignment("dot"), ESTIMATORS["double_backward"])
    result.update(list(gradients), None, 0.0)
    return result


def selector_of(learner, ranking=None, draws=2, seed=0, weight=0.0, rounds=4):
    return DocumentSelector(
        learner,
        ranking or Highest(),
        Redundancy(weight, rounds),
        draws=draws,
        seed=seed,
    )


def slow_gradients(learner, batches):
    """The gradient over S of each document's own mean loss."""
    gradients = {}
    for batch in batches:
        for document in batch.documents:
            alone = laid_out([[document]], width=WIDTH, pad_id=0, padding_apart=True)
            losses, _ = learner.token_losses(alone)
            pieces = torch.autograd.grad(losses.mean(), list(learner.aligned.values()))
            gradients[document.origin] = dict(zip(learner.aligned, pieces, strict=True))
    return gradients


def slow_values(learner, batches, direction):
    """Its inner product with a direction."""
    return {
        name: float(inner(direction, gradient))
        for name, gradient in slow_gradients(learner, batches).items()
    }


@pytest.mark.parametrize("loss_mean", ["token", "example"])
def test_values_are_inner_products_with_each_documents_own_gradient(loss_mean):
    learner = tiny_learner(dtype=torch.float64)
    direction = downstream(learner)
    batches = [packed_batch(seed, loss_mean=loss_mean) for seed in (1, 2)]
    selector, pool = selector_of(learner), Pool.gathered(batches, packed=True)
    (values,) = selector.values(
        pool, selector.one_hot_tasks(batches), estimator_of(learner, direction)
    )
    expected = slow_values(learner, batches, direction)
    result = dict(zip((d.origin for d in pool.documents), values.tolist(), strict=True))
    assert result == pytest.approx(expected, rel=1e-6)


def test_the_most_valuable_documents_fill_a_batch_of_the_same_size():
    learner = tiny_learner(dtype=torch.float64)
    direction = downstream(learner)
    drawn = [packed_batch(seed) for seed in (1, 2, 3)]
    selected = selector_of(learner, draws=3).select(
        drawn, estimator_of(learner, direction), meta_step=True, used=True
    )
    (batch,) = selected.batches
    values = slow_values(learner, drawn, direction)
    ranked = sorted(values, key=values.__getitem__, reverse=True)
    chosen = {document.origin for document in batch.documents}
    assert chosen == set(ranked[: len(chosen)])
    assert batch.input_ids.shape == drawn[0].input_ids.shape
    longest = max(len(document.ids) for document in batch.documents)
    assert abs(batch.tokens - sum(each.tokens for each in drawn) / 3) <= longest
    count = len(batch.documents)
    assert selected.metrics["documents_kept"] == count
    assert selected.metrics["documents_dropped"] == 12 - count
    assert selected.metrics["value_kept"] > selected.metrics["value_drawn"]


def test_from_the_second_round_on_documents_lose_what_they_have_in_common_with_the_taken():
    learner = tiny_learner(dtype=torch.float64)
    direction = downstream(learner)
    drawn = [packed_batch(seed, rows=3) for seed in (1, 2, 3, 4)]
    selector = selector_of(learner, weight=3.0, rounds=2)
    pool, estimator = Pool.gathered(drawn, packed=True), estimator_of(learner, direction)
    tasks = selector.one_hot_tasks(drawn)
    (values,) = selector.values(pool, tasks, estimator)
    result = selector._chosen(pool, tasks, values, estimator)

    names = [document.origin for document in pool.documents]
    gradients = slow_gradients(learner, drawn)
    own = standardised(torch.tensor([float(inner(direction, gradients[n])) for n in names]))
    first = pool.filled([], own.argsort(descending=True).tolist(), 1 / 4)
    summed = combine(
        *((float(sum(pool.documents[at].predicted)), gradients[names[at]]) for at in first)
    )
    common = standardised(torch.tensor([float(inner(summed, gradients[n])) for n in names]))
    rest = (own - 3.0 * 0.5 * common).argsort(descending=True).tolist()
    expected = pool.filled(first, [at for at in rest if at not in first], 1 / 2)
    plain = pool.filled([], own.argsort(descending=True).tolist(), 1 / 2)
    assert result == expected
    assert set(result) != set(plain)  # else the test could not fail


class InOrder(Highest):
    """As they were drawn."""

    def order(self, values, generator):
        return torch.arange(len(values))


def test_rounds_that_have_nothing_left_to_choose_from_take_nothing():
    """The first of four rounds asks for an eighth of the tokens: the short document is less than
    that, and with the long one all are taken. The batch then has room for one of them.
    """
    learner = tiny_learner()
    ids = torch.randint(3, 40, (WIDTH,), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = [
        laid_out(
            [[Document(ids[:size], [True] * size, f"d:{size}", "a")]],
            width=WIDTH,
            pad_id=0,
            padding_apart=True,
        )
        for size in (2, WIDTH)
    ]
    selector = selector_of(learner, InOrder(), weight=0.1, rounds=4)
    selected = selector.select(
        drawn, estimator_of(learner, downstream(learner)), meta_step=True, used=True
    )
    assert selected.metrics["documents_kept"] == 1


def test_boltzmann_draws_follow_the_softmax_and_cold_ones_the_values():
    draw, values = torch.Generator().manual_seed(0), torch.tensor([1.0, 0.0, -1.0]).double()
    first = [int(Boltzmann(0.5).order(values, draw)[0]) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(first), minlength=3) / 4000
    torch.testing.assert_close(
        shares.double(), torch.softmax(values / 0.5, dim=0), atol=0.02, rtol=0
    )
    assert Boltzmann(1e-6).order(values, draw).tolist() == [0, 1, 2]


def test_one_document_a_row_where_nothing_is_packed():
    learner = tiny_learner()
    learner.packed = False
    drawn = [tiny_batch(rows=3, seed=seed) for seed in (1, 2)]
    (batch,) = (
        selector_of(learner)
        .select(drawn, estimator_of(learner, downstream(learner)), meta_step=True, used=True)
        .batches
    )
    assert len(batch.documents) == 3 and batch.input_ids.shape[0] == 3
    assert batch.input_ids.shape[1] == max(len(document.ids) for document in batch.documents)


def test_several_batches_of_a_step_are_chosen_together():
    learner = tiny_learner()
    direction = downstream(learner)
    drawn = [packed_batch(seed) for seed in range(4)]
    batches = (
        selector_of(learner)
        .select(drawn, estimator_of(learner, direction), meta_step=True, used=True)
        .batches
    )
    values = slow_values(learner, drawn, direction)
    ranked = sorted(values, key=values.__getitem__, reverse=True)
    chosen = {document.origin for batch in batches for document in batch.documents}
    assert len(batches) == 2 and chosen == set(ranked[: len(chosen)])


def test_choosing_at_random_values_nothing_and_goes_on_from_its_state():
    learner, drawn = tiny_learner(), [packed_batch(seed) for seed in (1, 2)]
    whole, first = (selector_of(learner, AtRandom(), seed=3) for _ in range(2))
    digests = [
        whole.select(drawn, None, meta_step=True, used=True).batches[0].digest() for _ in range(4)
    ]
    assert len(set(digests)) > 1
    for _ in range(2):
        first.select(drawn, None, meta_step=True, used=True)
    again = selector_of(learner, AtRandom(), seed=9)
    again.load_state_dict(first.state_dict())
    assert [
        again.select(drawn, None, meta_step=True, used=True).batches[0].digest() for _ in range(2)
    ] == digests[2:]


def test_the_gain_is_of_one_half_of_the_feedback_under_the_other():
    learner, drawn = tiny_learner(), [packed_batch(seed) for seed in range(6)]
    one = downstream(learner)
    opposite = {name: -piece for name, piece in one.items()}
    agreed, contradicted = (
        selector_of(learner)
        .select(drawn, estimator_of(learner, one, other), meta_step=True, used=True)
        .metrics
        for other in (one, opposite)
    )
    assert agreed["gain"] > 0 > contradicted["gain"]
    assert agreed["agreement"] == pytest.approx(1)
    assert contradicted["agreement"] == pytest.approx(-1)


def test_a_source_that_is_never_chosen_is_warned_of_once(caplog):
    learner = tiny_learner()
    selector = selector_of(learner)

    class Starving(Highest):
        def order(self, values, draw):
            return torch.arange(len(values))  # the first batch, which is of source a

    selector.ranking = Starving()
    drawn = [packed_batch(1, source="a"), packed_batch(2, source="b")]
    estimator = estimator_of(learner, downstream(learner))
    with caplog.at_level(logging.WARNING):
        for _ in range(STARVED_DOCUMENTS // 4 + 5):
            metrics = selector.select(drawn, estimator, meta_step=True, used=True).metrics
    assert [record.args[1] for record in caplog.records] == ["b"]
    assert metrics["chosen.a"] == 1 and "chosen.b" not in metrics
    assert metrics["drawn.b"] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


def test_a_pool_larger_than_the_stream_is_refused():
    recipe = tiny_recipe("arm=greats_topk", "designer.draws=400")
    with pytest.raises(UserError, match=r"designer\.draws.*more than the stream"):
        Language().build(recipe, Language().load(recipe))
    assert [problem.where for problem in Language().check(recipe).problems] == ["designer.draws"]


@pytest.mark.parametrize("draws", [0, 1])
def test_there_is_nothing_to_choose_among_less_than_two_batches(draws):
    with pytest.raises(UserError, match=r"draws"):
        tiny_recipe("arm=greats_topk", f"designer.draws={draws}")


def test_a_budget_counts_what_is_trained_on_and_drawn_tokens_are_told_apart(materials):
    result = trained(materials, "arm=greats_topk", "budget.steps=3")[1]
    last = result.history[-1]
    assert result.draws == 2 and result.drawn == last["drawn"]
    assert result.spent.tokens == last["tokens"]
    assert result.drawn == pytest.approx(2 * result.spent.tokens, rel=0.1)
    shares = [value for name, value in last.items() if name.startswith("chosen.")]
    assert sum(shares) == pytest.approx(1)


def test_labels_reach_the_learner_through_the_choice_alone(materials, monkeypatch):
    """A selector that hears everything and chooses without it leaves the learner bit-identical."""
    (task,) = materials.tasks.values()
    mixed = dataclasses.replace(task, documents=shuffled(task.documents, seed=0))
    wrong = dataclasses.replace(materials, tasks={"feedback": mixed})
    hearing = ["arm=greats_topk", "value.guard_window=0", "value.meta_period=1"]
    assert trained(materials, *hearing)[0] != trained(wrong, *hearing)[0]
    monkeypatch.setattr(Highest, "order", lambda self, values, draw: torch.arange(len(values)))
    assert trained(materials, *hearing)[0] == trained(wrong, *hearing)[0]


def test_until_its_start_the_learner_trains_on_the_first_of_what_is_drawn(materials):
    late = ["budget.steps=1", "value.settle_steps=0", "value.start_step=5"]
    recipe = tiny_recipe("arm=greats_topk", *late)
    parts = Language().build(recipe, materials)
    plain = tiny_recipe("arm=onehot", *late)
    plain_parts = Language().build(plain, materials)
    result, expected = (
        train(Run(r, p, step0={})) for r, p in ((recipe, parts), (plain, plain_parts))
    )
    assert weights_hash(parts) == weights_hash(plain_parts)
    assert result.spent.tokens == expected.spent.tokens < result.drawn


def guarded_step(materials, *overrides):
    recipe = tiny_recipe("arm=greats_topk", "value.guard_window=1", *overrides)
    parts = Language().build(recipe, materials)
    return new_step(recipe, parts), lambda: next_batches(parts.stream, 2)


def test_a_closed_guard_opens_when_the_choice_would_have_gained(materials, monkeypatch):
    gains = lambda *_: {"gain": 1.0, "agreement": 1.0}  # noqa: E731
    monkeypatch.setattr(DocumentSelector, "_cross_fitted", gains)
    step, draw = guarded_step(materials, "value.meta_period=1")
    step.meta.guard.update(-1.0)
    drawn = draw()
    batch, metrics = step.take(drawn, 0.0)
    assert batch.batches[0] is drawn.batches[0]  # while it was closed nothing was chosen
    assert metrics["gain"] == 1 and step.meta.steers(step.count)
    assert metrics["steered"] == 0 and "documents_kept" not in metrics, "what this step was"
    drawn = draw()
    assert step.take(drawn, 0.0)[0].digest() != drawn.batches[0].digest()


def test_between_meta_steps_a_closed_guard_costs_no_selection(materials):
    step, draw = guarded_step(materials, "value.meta_period=2")
    step.take(draw(), 0.0)
    step.meta.guard.update(-1.0)
    assert "documents_kept" not in step.take(draw(), 0.0)[1]


def test_signs_of_collapse_stay_while_the_halves_disagree(materials, monkeypatch):
    disagree = lambda *_: {"gain": 1.0, "agreement": -1.0}  # noqa: E731
    monkeypatch.setattr(DocumentSelector, "_cross_fitted", disagree)
    step, draw = guarded_step(materials, "value.meta_period=1", "value.on_collapse=revert")
    for _ in range(3):
        step.take(draw(), 0.0)
        assert step.meta.collapse.signs


def test_a_choice_that_is_not_trained_on_takes_no_rounds_and_draws_nothing(monkeypatch):
    """While steering is off, its gain alone is of use, and the penalty's rounds cost passes."""
    learner = tiny_learner(dtype=torch.float64)
    drawn = [packed_batch(seed, rows=3) for seed in (1, 2, 3, 4)]
    selector = selector_of(learner, weight=3.0, rounds=2)
    estimator, before = estimator_of(learner, downstream(learner)), selector.generator.get_state()
    monkeypatch.setattr(DocumentSelector, "_similarity", None)
    monkeypatch.setattr(selector.ranking, "order", None, raising=False)
    chosen = selector.select(drawn, estimator, meta_step=True, used=False)
    assert torch.equal(selector.generator.get_state(), before)
    assert len(chosen.batches) == 2 and not selector.drawn_of


def test_what_finds_no_room_is_rather_the_last_of_those_chosen():
    """Rows of 8 tokens: the documents of 5 and 4 come first and take a row each."""
    documents = [Document([1] * n, [True] * n, str(n), "a") for n in (5, 4, 2, 6, 3, 1)]
    pool = Pool(documents, [], 21, 2, 8, True, "token")
    batches, placed = pool.batches(range(6), count=1, share=1.0)
    assert placed == [0, 1, 2, 4, 5]
    rows = [[each.origin for each in batch.documents] for batch in batches]
    assert sorted(rows[0]) == ["1", "2", "3", "4", "5"]


def test_rounds_are_keys_of_arms_with_a_penalty_alone():
    assert tiny_recipe("arm=opus", "designer.rounds=3").designer.redundancy_penalty.rounds == 3
    with pytest.raises(UserError, match=r"designer\.rounds"):
        tiny_recipe("arm=random_selection", "designer.kind=random_selection", "designer.rounds=3")
