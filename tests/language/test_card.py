"""The card beside a model: the hub reads it, what was measured is on it, and nothing of the data
acts in it.
"""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.language.conftest import CONFIGS, tiny_model
from tests.run.test_train import tiny_recipe
from vpretrain.language.card import escaped, fenced, fingerprint, write_card
from vpretrain.language.data import word_problems
from vpretrain.language.data.rows import Row
from vpretrain.run.budget import Spending
from vpretrain.run.launch import train_one
from vpretrain.run.scores import Score
from vpretrain.run.train import Result

NASTY = "<script>x</script> | [a](javascript:b) ![i](http://x/y.png)\n# title `code` ```"


def result():
    score = Score(1.5, 0.25, 40, higher_is_better=False)
    return Result(
        "onehot",
        0,
        Spending(steps=4, tokens=1000),
        {"test/nll": score},
        {"test/nll": score},
        "0" * 16,
    )


def test_nothing_of_the_data_is_markup(tmp_path):
    recipe = tiny_recipe().model_copy(update={"description": NASTY})
    feedback = [Row("p", "t", "f:1", NASTY)]
    write_card(tmp_path, recipe, result(), location=None, feedback=feedback)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    before_recipe = text.split("## Recipe")[0]
    assert "<script" not in before_recipe and "javascript:" in before_recipe
    assert not re.search(r"(?<!\\)\]\(javascript|(?<!\\)!\[|\n# title", before_recipe)
    assert "<script" not in text, "nor raw in the recipe, for whoever does not know code blocks"
    assert text.count("\n````yaml\n") == 1 and text.rstrip().endswith(
        "````"
    )  # a fence longer than the text's own
    table = [line for line in text.splitlines() if line.startswith("| test/nll")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [6]


def test_the_alignment_is_that_of_the_arm(tmp_path):
    for arm, alignment in {"opus": "optimizer_aware", "dga": "dot", "field": "cosine"}.items():
        recipe = tiny_recipe(f"arm={arm}", "value.alignment=cosine")
        write_card(tmp_path, recipe, result(), location=None, feedback=[])
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert f"Value: alignment {escaped(alignment)}," in text


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        ("token_weights", "was shaped by the gradient of a feedback set (V-pretraining,"),
        ("vpretrain+sft", "(V-pretraining,"),
        ("random_feedback", "by a random direction at every feedback batch (a control of"),
        ("fixed_random_direction", "was shaped by one random direction (a control of"),
        ("reversed_feedback", "of a feedback set with the opposite sign (a control of"),
        ("shuffled_feedback", "a feedback set with the labels of other items (a control of"),
        ("onehot", "continued on unlabeled text, without the gradient of a feedback set."),
        ("rho1", "continued on unlabeled text, without the gradient of a feedback set."),
        ("random_selection", "continued on unlabeled text, without the gradient of a feedback"),
        ("feedback_sft", "trained on verified rows themselves, without V-pretraining."),
        ("sft", "trained on verified rows themselves, without V-pretraining."),
    ],
)
def test_a_card_claims_no_more_than_the_arm_does(tmp_path, arm, sentence):
    feedback = [Row("p", "t", "f:1", "verified")]
    write_card(tmp_path, tiny_recipe(f"arm={arm}"), result(), location=None, feedback=feedback)
    text = (tmp_path / "README.md").read_text(encoding="utf-8").partition("## Measured")[0]
    assert sentence in text
    assert ("verified rows." in text) == (arm == "vpretrain+sft")
    steered = "shaped by" in sentence or "V-pretraining," in sentence or "a control of" in sentence
    assert ("shaped by" in text) == ("- Value: alignment" in text) == steered
    reads = steered or arm in ("rho1", "feedback_sft", "sft")
    assert ("- Feedback: verified, 1 rows" in text) == reads
    assert ("- Stream: " in text) == (arm not in ("feedback_sft", "sft"))


def test_escaping():
    assert escaped("a|b\n*c* <d> [e](f) `g`") == r"a\|b \*c\* &lt;d&gt; \[e\]\(f\) \`g\`"
    assert fenced("x") == "```yaml\nx\n```" and fenced("a ````` b").startswith("``````yaml")


def test_a_fingerprint_is_of_text_and_order():
    rows = [Row("a", "b", "f:1", "s"), Row("", "c", "f:2", "s")]
    assert fingerprint(rows) == fingerprint([Row("a", "b", "elsewhere", "t"), rows[1]])
    others = [
        rows[::-1],
        rows[:1],
        [Row("", "ab", "f:1", "s"), rows[1]],
        [Row("ab", "", "f:1", "s"), rows[1]],
    ]
    assert len({fingerprint(other) for other in [rows, *others]}) == 5


def test_the_licence_comes_from_the_base(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "model"
    base.mkdir()
    folder.mkdir()
    (base / "README.md").write_text(
        "---\nlicense: apache-2.0\ntags: [x]\n---\n# base\n", encoding="utf-8"
    )
    recipe = tiny_recipe("learner.config=null", f"learner.model={base}")
    write_card(folder, recipe, result(), location=str(base), feedback=[])
    assert ModelCard.load(folder / "README.md").data.license == "apache-2.0"
    (base / "README.md").write_text("---\n: [broken\n---\n", encoding="utf-8")
    write_card(folder, recipe, result(), location=str(base), feedback=[])
    card = ModelCard.load(folder / "README.md")
    assert card.data.license is None and "fill in" in card.text
    write_card(folder, recipe, result(), location="owner/name", feedback=[])
    assert ModelCard.load(folder / "README.md").data.base_model == "owner/name"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint with the generator's tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = word_problems.tokenizer()
    torch.manual_seed(0)
    config = CONFIGS["llama"] | {"vocab_size": len(tokenizer)}
    model = AutoModelForCausalLM.from_config(
        type(tiny_model("llama").config)(**config, max_position_embeddings=128)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("merge", [True, False])
def test_a_lora_run_leaves_what_people_open(base, tmp_path, merge):
    recipe = tiny_recipe(
        "learner.config=null",
        f"learner.model={base}",
        f"learner.lora={{r: 2, alpha: 4, merge: {str(merge).lower()}}}",
        "learner.dtype=bfloat16",
        "learner.activation_checkpointing=true",
        "arm=closed_form",
        "value.meta_period=2",
        "evaluate.answer=null",
        "data.evaluation.test.rows=20",
    )
    results = train_one(recipe, tmp_path, lambda record, fraction: None)
    folder = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab() == word_problems.tokenizer().get_vocab()
    )
    original = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16
    ).float()  # what the adapters were on
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = original(ids).logits
        by_peft = PeftModel.from_pretrained(original, folder / "adapter" if merge else folder)(
            ids
        ).logits
        assert float((by_peft - before).abs().max()) > 1e-3
        found_there = model.float()(ids).logits
    # Without merging, transformers opens the base in its own float32; merged, what the run computed
    # on is in the weights.
    torch.testing.assert_close(
        found_there,
        by_peft,
        **({"rtol": 1e-4, "atol": 1e-5} if merge else {"rtol": 0.05, "atol": 0.05}),
    )

    card = ModelCard.load(folder / "README.md")
    rows = json.loads(json.dumps(results))
    assert (
        f"{rows['step0']['test/nll']:.4f}" in card.text
        and f"{rows['final']['test/nll']:.4f}" in card.text
    )
    assert "closed\\_form" in card.text and "LoRA adapters (r 2, alpha 4)" in card.text
    assert re.search(r"64 rows, SHA-256 of their text [0-9a-f]{16}", card.text)
    assert card.data.library_name == "transformers" and card.data.license is None
