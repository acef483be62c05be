"""Arms that train on verified rows themselves, alone or after the stream, through TRL."""

import builtins
import json

import pytest
import torch

from tests.run.test_train import tiny_recipe, trained, weights_hash
from vpretrain.language import Language, posttraining
from vpretrain.language.data.rows import Row, encode
from vpretrain.language.data.stream import padded
from vpretrain.run.budget import Spending
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.studies import compare as comparisons
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import UserError

SHORT = [
    "posttraining.sft={steps: 2, batch_size: 4, learning_rate: 1e-2}",
    "posttraining.grpo={steps: 2, prompts: 2, samples: 4, new_tokens: 6, learning_rate: 1e-2, "
    "checker: tests-even}",
    "data.feedback.rows.rows=40",
    "data.evaluation.test.rows=8",
]


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe(*SHORT))


@pytest.fixture(autouse=True)
def even():
    """Random weights answer nothing rightly; they do answer at different lengths."""
    posttraining.CHECKERS["tests-even"] = lambda pattern: (
        lambda row, completion: float(len(completion) % 2)
    )
    yield
    del posttraining.CHECKERS["tests-even"]


@pytest.mark.parametrize("arm", posttraining.ARMS)
def test_every_arm_trains_and_is_charged(materials, arm):
    before = weights_hash(Language().build(tiny_recipe(*SHORT), materials))
    after, result = trained(materials, *SHORT, f"arm={arm}")
    assert after != before
    assert result.spent.steps == (4 if arm.startswith("vpretrain") else 0)
    alone = (
        trained(materials, *SHORT, "arm=token_weights")[1].spent
        if result.spent.steps
        else Spending()
    )
    assert (
        result.spent.tokens > alone.tokens and result.spent.seconds > 0 and result.spent.flops > 0
    )


def test_the_stream_comes_first_and_is_the_designers(materials):
    """What follows the stream starts from what the recipe's designer made of the learner."""
    steered, plain = trained(materials, *SHORT, "designer.kind=token_weights", "arm=token_weights")
    recipe = tiny_recipe(*SHORT, "designer.kind=token_weights", "arm=vpretrain+sft")
    parts = Language().build(recipe, materials)
    met = []
    followed, on = parts.after, posttraining.on_stream(recipe.arm)

    def after(spent):
        met.append(weights_hash(parts))
        followed(spent)

    object.__setattr__(parts, "after", after)
    result = train(Run(recipe, parts))
    assert on and met == [steered] and result.stream_digest == plain.stream_digest
    assert weights_hash(parts) != steered


def test_fine_tuning_lowers_the_loss_of_the_feedback(materials):
    recipe = tiny_recipe(*SHORT, "arm=sft", "posttraining.sft.steps=12")
    parts = Language().build(recipe, materials)
    batch = padded(materials.feedback, pad_id=materials.pad_id)

    def loss():
        with evaluating(parts.learner.model), torch.no_grad():
            return float(parts.learner.token_losses(batch)[0].mean())

    before = loss()
    parts.after(Spending())
    assert loss() < 0.8 * before


def test_side_by_side(tmp_path):
    recipe = tiny_recipe(*SHORT, "budget.steps=2")
    table = comparisons.compare(
        recipe, arms=["onehot", "sft", "vpretrain+grpo"], seeds=2, match="steps", out=tmp_path
    )
    used = {run["arm"]: run for run in table["runs"]}
    assert used["sft"]["steps"] == 0 and used["vpretrain+grpo"]["steps"] == 2
    assert used["vpretrain+grpo"]["flops"] > used["onehot"]["flops"]
    assert set(table["paired"]) == {"sft", "vpretrain+grpo"}


def seen(*overrides):
    """The rows whose sampled answers a short ``grpo`` checks."""
    rows = {}

    def checker(row, completion):
        rows[row.origin] = row
        return float(len(completion) % 2)

    posttraining.CHECKERS["tests-even"] = lambda pattern: checker
    recipe = tiny_recipe(*SHORT, "arm=grpo", *overrides)
    Language().build(recipe, Language().load(recipe)).after(Spending())
    return rows.values()


def test_policy_optimisation_sees_the_rows_that_the_recipe_names(materials):
    problems = [source.name for source in materials.sources if source.name != "chatter"]
    assert {row.source for row in seen()} == {"feedback"}
    assert {
        row.source for row in seen(f"posttraining.rows={{kind: stream, source: {problems[0]}}}")
    } == {problems[0]}
    own = seen("posttraining.rows={kind: word_problems, split: dev, rows: 6}")
    assert {row.source for row in own} == {"posttraining"} and 2 <= len(
        own
    ) <= 4  # two prompts a step, two steps


def test_fine_tuning_learns_the_rows_that_the_recipe_names(tmp_path):
    row = {"question": "Ann has 1 2 apples .", "answer": "1 2 + 3 = 1 5"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    own = (
        f"posttraining.rows={{kind: jsonl, path: '{tmp_path}/own.jsonl', prompt: question, "
        "solution: answer}"
    )
    losses = []
    for overrides in ([own], []):
        recipe = tiny_recipe(*SHORT, "arm=sft", "posttraining.sft.steps=40", *overrides)
        held = Language().load(recipe)
        parts = Language().build(recipe, held)
        alone, _ = encode([Row(f"{row['question']} ", row["answer"], "own", "own")], held.tokenizer)
        parts.after(Spending())
        with evaluating(parts.learner.model), torch.no_grad():
            losses.append(
                float(parts.learner.token_losses(padded(alone, pad_id=held.pad_id))[0].mean())
            )
    assert losses[0] < 0.3 * losses[1]


def test_fine_tuning_is_charged_without_padding(materials):
    """One pass over all rows, which are of different lengths."""
    recipe = tiny_recipe(*SHORT, "arm=sft", "posttraining.sft.steps=10")
    rows = materials.texts.feedback
    documents, _ = encode(rows, materials.tokenizer)
    lengths = [len(document.ids) for document in documents]
    assert len(lengths) == 40 and len(set(lengths)) > 1
    spent = Spending()
    Language().build(recipe, materials).after(spent)
    assert spent.tokens == sum(lengths)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "{kind: stream, source: nowhere}",
            r"(?s)posttraining\.rows\.source.*got +nowhere.*accepted +of ",
        ),
        (
            "{kind: word_problems, split: test, rows: 4}",
            r"(?s)posttraining\.rows: .* also in the test rows",
        ),
        (
            "{kind: jsonl, path: none.jsonl, text: text}",
            r"(?s)posttraining\.rows\.path.*no such file",
        ),
        ("{kind: feedbakc}", r"(?s)posttraining\.rows.*feedbakc.*feedback"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_whatever_the_arm(spec, said):
    with pytest.raises(UserError, match=said):
        Language().load(tiny_recipe(*SHORT, f"posttraining.rows={spec}"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("{kind: chatter, rows: 8}", r"posttraining\.rows.*no prompt"),
        (
            "{kind: word_problems, split: dev, rows: 1}",
            r"(?s)grpo\.prompts.*got +2.*accepted +1 to 1",
        ),
    ],
)
def test_policy_optimisation_needs_prompts_to_answer(rows, said):
    recipe = tiny_recipe(*SHORT, f"posttraining.rows={rows}", "arm=sft+grpo")
    with pytest.raises(UserError, match=said):
        Language().build(recipe, Language().load(recipe))


def test_rows_that_leave_nothing_to_train_on_are_refused_before_the_stream():
    """Not after hours of it."""
    rows = "posttraining.rows={kind: word_problems, split: dev, rows: 6}"
    recipe = tiny_recipe(*SHORT, rows, "arm=vpretrain+sft")
    materials = Language().load(recipe)
    data = recipe.data.model_copy(
        update={"feedback": recipe.data.feedback.model_copy(update={"max_tokens": 4})}
    )
    with pytest.raises(UserError, match=r"posttraining\.rows: none leaves a token"):
        Language().build(recipe.model_copy(update={"data": data}), materials)


def test_an_unknown_checker_is_named(materials):
    recipe = tiny_recipe(*SHORT, "posttraining.grpo.checker=nubmer", "arm=grpo")
    with pytest.raises(UserError, match=r"posttraining\.grpo\.checker"):
        Language().build(recipe, materials)


def test_without_trl_the_extra_is_named(materials, monkeypatch):
    result = builtins.__import__
    gone = lambda name, *rest: (  # noqa: E731
        (_ for _ in ()).throw(ImportError(name)) if name == "trl" else result(name, *rest)
    )
    monkeypatch.setattr(builtins, "__import__", gone)
    with pytest.raises(UserError, match=r"vpretrain\[posttrain\]"):
        Language().build(tiny_recipe(*SHORT, "arm=sft"), materials)


def test_several_processes_are_refused(materials, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        Language().build(tiny_recipe(*SHORT, "arm=sft"), materials)
