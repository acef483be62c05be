"""When the designer learns, and from which unlabeled batch: a delayed start (v1 4.2), and batches of
its own.
"""

import pytest
import torch

from tests.run.test_train import tiny_recipe, trained, weights_hash
from vpretrain.language import Language
from vpretrain.method.accumulation import next_batches
from vpretrain.run.build import new_step
from vpretrain.run.run import Run
from vpretrain.run.train import train

OWN = "value.meta_batch={batch_size: 2, window_tokens: 40}"
EVERY = ["value.meta_period=1", "value.settle_steps=0", "value.guard_window=0"]


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


def learned_from(designer):
    """The contexts that a designer is given to learn from, as they come."""
    seen, learn = [], designer.learn
    designer.learn = lambda context, value_of: (seen.append(context), learn(context, value_of))[1]
    return seen


def test_before_its_start_the_run_is_onehots_bit_for_bit(materials):
    late = ["arm=ascent", "value.start_step=3", *EVERY]
    plain = trained(materials, "arm=onehot", "budget.steps=3", "value.settle_steps=0")[0]
    assert trained(materials, *late, "budget.steps=3")[0] == plain
    weights, result = trained(materials, *late, "budget.steps=5")
    assert [record["steered"] for record in result.history] == [0, 0, 0, 1, 1]
    assert ["gain" in record for record in result.history] == [False] * 3 + [True] * 2
    plain = trained(materials, "arm=onehot", "budget.steps=5", "value.settle_steps=0")[0]
    assert weights != plain


@pytest.mark.parametrize("arm", ["ascent", "token_weights"])
def test_the_designer_learns_from_a_batch_of_its_own(materials, arm):
    recipe = tiny_recipe(f"arm={arm}", OWN, *EVERY, "learner.accumulate=2")
    parts = Language().build(recipe, materials)
    seen, step = learned_from(parts.designer), new_step(recipe, parts)
    drawn = [next_batches(parts.stream, 2) for _ in range(2)]
    for batches in drawn:
        step(batches, 1e-3)
    assert [tuple(context.batch.input_ids.shape) for context in seen] == [(2, 40)] * 2
    digests = {batch.digest() for batches in drawn for batch in batches.batches}
    own = [context.batch.digest() for context in seen]
    assert not digests & set(own) and own[0] != own[1]
    # the learner's own batches are those of a run without it
    plain = Language().build(tiny_recipe(f"arm={arm}"), materials)
    assert [next_batches(plain.stream, 2).digest() for _ in range(2)] == [
        batches.digest() for batches in drawn
    ]


def test_documents_are_cut_to_its_window_and_another_seed_is_another_order(materials):
    def first(*overrides):
        return next(Language().build(tiny_recipe(*overrides), materials).meta_batches)

    assert first(OWN).digest() == first(OWN).digest()
    assert first(OWN).digest() != first(OWN, "value.meta_batch.seed=1").digest()
    short = first("value.meta_batch={batch_size: 2, window_tokens: 12}")
    assert short.input_ids.shape == (2, 12)
    assert all(any(document.predicted[1:]) for document in short.documents)


def test_it_is_resumed_exactly(materials):
    overrides = ["arm=ascent", OWN, *EVERY, "budget.steps=4"]
    whole = trained(materials, *overrides)[0]
    recipe = tiny_recipe(*overrides)
    parts = Language().build(recipe, materials)
    run = Run(recipe, parts)
    run.start()
    for _ in range(2):
        batch = run.next_batch()
        run.step(batch)
        run.advance(batch)
    state = torch.load(saved(run), weights_only=True)
    parts = Language().build(recipe, materials)
    train(Run(recipe, parts, resume=state))
    assert weights_hash(parts) == whole


def saved(run):
    from io import BytesIO

    file = BytesIO()
    torch.save(run.state.state_dict(), file)
    file.seek(0)
    return file
