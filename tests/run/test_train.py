"""Whole runs on tiny learners: the information bottlenecks, the baselines, and that a run can be
made again.
"""

import dataclasses
import hashlib

import pytest
import torch

from tests.designers import arms_of, of_every_kind
from vpretrain.config import recipe as recipes
from vpretrain.language import Language
from vpretrain.language.feedback.likelihood import shuffled
from vpretrain.language.steering.arms import ARMS
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import UserError

TINY = [
    "learner.model=null",
    "learner.prepare=null",
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 24, intermediate_size: "
    "32, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128, "
    "tie_word_embeddings: false}",
    "learner.aligned_blocks=1",
    "learner.learning_rate=1e-2",
    "budget.steps=4",
    "data.batch_size=4",
    "data.stream.0.rows.rows=200",
    "data.stream.1.rows.rows=200",
    "data.feedback.rows.rows=64",
    "data.feedback.batch_size=16",
    "data.evaluation.test.rows=40",
    *of_every_kind(ARMS, hidden=16, candidates=6),
    "value.settle_steps=2",
    "evaluate.new_tokens=4",
]


def tiny_recipe(*overrides):
    return recipes.load("demo-language", [*TINY, *overrides], schemas=SCHEMAS)


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


def weights_hash(parts):
    digest = hashlib.sha256()
    for name, parameter in parts.learner.model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def trained(materials, *overrides):
    recipe = tiny_recipe(*overrides)
    parts = Language().build(recipe, materials)
    result = train(Run(recipe, parts))
    return weights_hash(parts), result


@pytest.fixture(scope="module")
def onehot(materials):
    """The plain run, that others are held against."""
    return trained(materials, "arm=onehot")


@pytest.fixture(scope="module")
def twice(materials):
    """The plain run that draws two batches a step."""
    return trained(materials, "arm=onehot", "learner.accumulate=2")


@pytest.mark.parametrize("arm", arms_of(ARMS))
def test_every_arm_trains_and_sees_the_same_stream(materials, onehot, twice, arm):
    before = weights_hash(Language().build(tiny_recipe(), materials))
    after, result = trained(materials, f"arm={arm}")
    assert after != before
    assert result.spent.steps == 4 and result.spent.tokens > 0
    assert set(result.step0) == set(result.final) == {"test/nll", "test/pass@1"}
    plain = onehot if result.draws == 1 else twice  # those that select draw two batches for one
    same = result.stream_digest == plain[1].stream_digest
    assert same != (ARMS.named(arm).trains_on == "feedback")
    assert all(torch.isfinite(torch.tensor(record["loss"])) for record in result.history)


@pytest.mark.parametrize("arm", ["field", "closed_form"])
def test_same_seed_same_run_bit_for_bit(materials, arm):
    first, again = trained(materials, f"arm={arm}"), trained(materials, f"arm={arm}")
    assert first[0] == again[0]
    strip = lambda h: [{k: v for k, v in r.items() if "second" not in k} for r in h]  # noqa: E731
    assert strip(first[1].history) == strip(again[1].history)
    assert first[1].final == again[1].final
    assert trained(materials, f"arm={arm}", "seed=1")[0] != first[0]


@pytest.mark.parametrize("arm", ["ascent", "field", "closed_form"])
def test_alpha_zero_is_the_onehot_run_bit_for_bit(materials, onehot, arm):
    assert trained(materials, f"arm={arm}", "designer.gate_max=0")[0] == onehot[0]


def test_tilt_zero_is_the_onehot_run_bit_for_bit(materials, onehot):
    assert trained(materials, "arm=token_weights", "designer.tilt=0")[0] == onehot[0]


@pytest.mark.parametrize("arm", ["ascent", "field"])
def test_labels_reach_the_learner_through_the_designer_alone(materials, arm):
    """With a designer that is given all feedback but cannot change, permuted feedback labels leave
    the learner bit-identical.
    """
    frozen = [
        f"arm={arm}",
        "designer.learning_rate=0",
        "value.shrink=false",
        "value.guard_window=0",
        "value.meta_period=1",
    ]
    overrides = [f"arm={arm}", "value.shrink=false", "value.guard_window=0", "value.meta_period=1"]
    (task,) = materials.tasks.values()
    mixed = dataclasses.replace(task, documents=shuffled(task.documents, seed=0))
    wrong = dataclasses.replace(materials, tasks={"feedback": mixed})
    assert wrong.feedback != materials.feedback
    assert trained(materials, *frozen)[0] == trained(wrong, *frozen)[0]
    assert (
        trained(materials, *overrides)[0] != trained(wrong, *overrides)[0]
    )  # else the test could not fail


def test_direct_training_cuts_feedback_to_the_window():
    """Feedback rows may be longer than a window of the stream, which this arm packs them into."""
    recipe = tiny_recipe("arm=feedback_sft", "data.window_tokens=24")
    parts = Language().build(recipe, Language().load(recipe))
    assert train(Run(recipe, parts, step0={})).spent.steps == 4


def test_wrong_labels_are_what_direct_training_trains_on(materials):
    runs = [
        trained(materials, "arm=feedback_sft", f"feedback.control={each}")[0]
        for each in ("none", "shuffled")
    ]
    assert runs[0] != runs[1]


def test_budget_in_tokens_and_seconds(materials):
    _, by_tokens = trained(materials, "arm=onehot", "budget={tokens: 1000}", "budget.steps=null")
    tokens = [record["tokens"] for record in by_tokens.history]
    assert tokens[-1] >= 1000 and all(t < 1000 for t in tokens[:-1])
    _, by_seconds = trained(materials, "arm=onehot", "budget={seconds: 1}", "budget.steps=null")
    assert by_seconds.history[-1]["seconds"] >= 1


def test_settling_leaves_the_warm_up_whole_where_the_budget_is_in_seconds(materials):
    recipe = tiny_recipe(
        "arm=onehot", "budget={seconds: 3}", "budget.steps=null", "value.settle_steps=8"
    )
    run = Run(recipe, Language().build(recipe, materials), step0={})
    run.start()
    assert run.state.spent.seconds > 0
    assert run.state.spent.fraction(recipe.budget, since=run.state.prepared) == 0


def test_a_budget_that_settling_uses_up_is_no_run_of_no_steps(materials):
    """Step 0 would stand as the final score, and nothing would say so."""
    overrides = ("arm=onehot", "budget={seconds: 0.05}", "budget.steps=null")
    with pytest.raises(UserError, match=r"budget\.seconds(.|\n)*value\.settle_steps") as refused:
        trained(materials, *overrides, "value.settle_steps=1000")
    assert "of 1000 steps" in str(refused.value)


def test_random_feedback_is_shrunk_away(materials):
    """Two fresh random directions do not agree, so the targets stay next to one-hot; the real ones
    do not.
    """
    overrides = [
        "value.meta_period=1",
        "budget.steps=6",
        "data.feedback.batch_size=32",
        "designer.kind=closed_form",
        "designer.clip=100",
    ]
    noise = trained(materials, "arm=random_feedback", *overrides)[1].history[-1]["reliability"]
    real = trained(materials, "arm=closed_form", *overrides)[1].history[-1]["reliability"]
    assert noise < 0.5 * real


def test_more_candidates_than_tokens_is_refused(materials):
    recipe = tiny_recipe("arm=closed_form", "designer.candidates=1000")
    with pytest.raises(UserError, match=r"designer.candidates.*\n.*1000\n.*1 to 96"):
        Language().build(recipe, materials)


def test_aligned_patterns_that_match_nothing_are_refused(materials):
    recipe = tiny_recipe("learner.aligned_patterns=['*.nothing.*']")
    with pytest.raises(UserError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight"):
        Language().build(recipe, materials)


def test_other_abilities_are_measured_beside_the_split():
    """`evaluate.also` reads its own rows, and a feedback row among them is refused like one in the
    split.
    """
    sentences = "data.evaluation.sentences={kind: chatter, rows: 20, seed: 1}"
    recipe = tiny_recipe(sentences, "evaluate.also=[sentences]")
    result = Language().build(recipe, Language().load(recipe)).evaluate()
    assert set(result) == {"test/nll", "sentences/nll", "test/pass@1"}
    assert (
        len(result["sentences/nll"].items) == 20
        and result["sentences/nll"].value != result["test/nll"].value
    )
    leaking = "data.evaluation.sentences={kind: word_problems, split: feedback, rows: 64}"
    with pytest.raises(UserError, match="the sentences rows"):
        Language().load(tiny_recipe(leaking, "evaluate.also=[sentences]"))
