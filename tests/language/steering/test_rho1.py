"""Tokens chosen by excess loss over a reference."""

import shutil

import pytest
import torch

from tests.language.conftest import tiny_batch, tiny_learner
from tests.run.test_train import tiny_recipe, trained
from vpretrain.config.recipe import dump, load
from vpretrain.language import Language
from vpretrain.language.steering.reference import ExcessLoss, Reference
from vpretrain.language.steering.rho1 import TopTokens
from vpretrain.run import resources
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.resources import disk_needed, memory_needed
from vpretrain.run.run import Run
from vpretrain.system.errors import UserError


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


def test_the_tokens_with_the_largest_excess_loss_are_kept():
    learner, other, batch = tiny_learner(), tiny_learner(seed=1), tiny_batch()
    task = ExcessLoss(Reference(other), TopTokens(0.6)).make_task(learner.forward(batch), None)
    excess = learner.token_losses(batch)[0] - other.token_losses(batch)[0]
    count = round(0.6 * len(excess))
    expected = torch.zeros(len(excess))
    expected[excess.topk(count).indices] = len(excess) / count
    torch.testing.assert_close(task.mass[:, 0], expected)


def test_the_reference_is_trained_before_the_first_step_and_charged_apart(materials):
    steps = ["arm=rho1", "budget.steps=2", "designer.reference_epochs=2"]
    result = trained(materials, *steps)[1]
    first, second = result.history
    tokens = 2 * sum(len(document.ids) for document in materials.feedback)
    assert first["prepared_tokens"] == tokens and first["prepared_seconds"] > 0
    assert first["prepared_flops"] > 0
    assert first["reference_loss_last"] < first["reference_loss_first"]
    assert "prepared_tokens" not in second
    plain = trained(materials, "arm=onehot", "budget.steps=2")[1]
    assert result.spent.tokens == plain.spent.tokens + tokens
    assert result.stream_digest == plain.stream_digest


def test_training_the_reference_leaves_the_random_numbers_alone():
    """Else the learner's dropout would differ from that of the other arms."""
    reference = tiny_learner("gpt2")
    for module in reference.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    documents = tiny_batch(rows=4).documents
    before = torch.get_rng_state()
    Reference(reference, documents, batch_size=2).train()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_schedule_is_over_what_the_reference_left_of_the_budget(materials):
    schedule = ["budget={tokens: 20000}", "budget.steps=null", "learner.warmup_fraction=0.5"]
    recipe = tiny_recipe("arm=rho1", "designer.reference_epochs=1", *schedule)
    run = Run(recipe, Language().build(recipe, materials), step0={})
    run.start()
    prepared, settled = run.state.prepared.tokens, run.state.spent.tokens
    assert settled == prepared > 1000
    drawn = run.next_batch()
    batch, metrics = run.take(drawn)
    assert metrics["learning_rate"] == 0  # the warm-up begins
    run.advance(batch, drawn)
    second = run.take(run.next_batch())[1]["learning_rate"]
    used = batch.tokens / (20000 - prepared)
    assert second == pytest.approx(recipe.learner.learning_rate * used / 0.5)
    resumed = Run(recipe, Language().build(recipe, materials), resume=run.state.state_dict())
    resumed.start()
    assert resumed.state.prepared == run.state.prepared


def test_a_budget_that_the_reference_uses_up_is_told_as_that(materials):
    with pytest.raises(UserError, match=r"budget\.tokens.*beforehand used it up"):
        trained(materials, "arm=rho1", "budget={tokens: 500}", "budget.steps=null")


def test_the_reference_counts_in_memory_and_on_the_disk(materials, monkeypatch):
    recipe = tiny_recipe("arm=rho1")
    model = Language().build(tiny_recipe("arm=onehot"), materials).learner.model
    needed = {
        followers: (
            memory_needed(model, recipe.checkpoint, followers=followers, tokens=4 * 96),
            disk_needed(model, recipe.checkpoint, followers=followers),
        )
        for followers in (0, 1)
    }
    assert recipe.data.batch_size * recipe.data.window_tokens == 4 * 96
    memory, disk = needed[0]
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda at: shutil._ntuple_diskusage(disk, 0, disk))
    assert not Language().check(tiny_recipe("arm=onehot")).problems
    assert [problem.where for problem in Language().check(recipe).problems] == ["memory", "disk"]
    parts = Language().build(recipe, materials)
    assert parts.followers == 1 and needed[1] > needed[0]


def test_a_reference_of_another_tokenizer_is_refused(materials, tmp_path):
    parts = Language().build(tiny_recipe(), materials)
    parts.save(tmp_path / "same")
    own = tiny_recipe("arm=rho1", f"designer.reference={tmp_path / 'same'}")
    run = Run(own, Language().build(own, materials), step0={})
    run.start()
    assert run.state.spent.tokens == 0  # nothing was trained

    parts.save(tmp_path / "other")
    tokenizer = materials.tokenizer
    tokenizer = type(tokenizer).from_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["<a token of its own>"])
    tokenizer.save_pretrained(tmp_path / "other")
    recipe = tiny_recipe("arm=rho1", f"designer.reference={tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"designer\.reference.*another tokenizer"):
        Language().build(recipe, materials)


def test_the_resolved_recipe_of_a_given_reference_loads_again(tmp_path):
    """A run is resumed and explained by it; it names every key, those of training included."""
    recipe = tiny_recipe("arm=rho1", "designer.reference=folder")
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert load(tmp_path / "recipe.yaml", schemas=SCHEMAS) == recipe
