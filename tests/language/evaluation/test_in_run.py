"""Benchmarks scored during a run."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.language.evaluation.harness_models import byte_tokenizer, tiny_model
from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.language.data.layout import Layout
from vpretrain.language.data.rows import Row
from vpretrain.language.evaluation.held_out import greedy_exact_match
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.system.errors import UserError


def problems(root):
    (root / "gsm8k").mkdir()
    rows = [
        {"question": f"3 + {n} = ?", "answer": f"It is {3 + n}.\n#### {3 + n}"} for n in range(5)
    ]
    (root / "gsm8k/test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [
        f"data.root={root}",
        "evaluate.tasks=[gsm8k]",
        "evaluate.task_rows=4",
        "evaluate.task_tokens=6",
    ]


def test_they_stand_beside_the_split(tmp_path):
    recipe = tiny_recipe(*problems(tmp_path))
    scores = Language().build(recipe, Language().load(recipe)).evaluate()
    result = {name: score for name, score in scores.items() if name.startswith("gsm8k/")}
    assert result and all(score.n == 4 for name, score in result.items() if "pass" in name)
    assert all(len(score.items) in (0, score.n) for score in result.values())


def test_a_missing_file_is_named_by_the_recipes_key(tmp_path):
    with pytest.raises(UserError, match=r"data\.root"):
        Language().load(tiny_recipe(f"data.root={tmp_path}", "evaluate.tasks=[gsm8k]"))


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 4},
        {"suppress_tokens": [*range(2, 140)]},
    ],
)
def test_answers_are_the_greedy_ones_whatever_the_checkpoint_asks_for(settings):
    """The solutions are what the model's most probable tokens spell, so that Pass@1 is 1."""
    model, tokenizer = tiny_model(), byte_tokenizer()
    rows = [answered(model, tokenizer, f"What is {number}?", 12)[0] for number in range(4)]
    kept = model.generation_config
    for key, value in settings.items():
        setattr(kept, key, value)
    score = exact_match(model, tokenizer, rows)
    assert score.value == 1.0 and model.generation_config is kept


def test_an_answer_also_ends_where_the_checkpoint_ends_a_turn():
    """As Gemma and Phi do by a token that is not the tokenizer's end token."""
    model, tokenizer = tiny_model(), byte_tokenizer()
    row, ids = answered(model, tokenizer, "What is 0?", 12)
    last = next(at for at in range(1, 12) if ids[at] not in ids[:at])
    cut = Row(row.prompt, tokenizer.decode(ids[: last + 1]), row.origin, row.source)
    assert exact_match(model, tokenizer, [cut]).value == 0.0
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, ids[last]]
    assert exact_match(model, tokenizer, [cut]).value == 1.0


def test_answers_beyond_the_models_positions_are_refused():
    """GPT-2 would fail on them in the middle of an evaluation; rotary positions go on."""
    tokenizer, row = byte_tokenizer(), Row("What is 0?", "0", "r:0", "s")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=20, n_embd=8, n_layer=1, n_head=1, eos_token_id=1
    )
    with pytest.raises(UserError, match=r"(?s)evaluate\.new_tokens.*got +12.*accepted +1 to 11"):
        exact_match(GPT2LMHeadModel(config), tokenizer, [row])
    config.n_positions = 21
    assert exact_match(GPT2LMHeadModel(config), tokenizer, [row]).n == 1
    assert exact_match(tiny_model(positions=20), tokenizer, [row]).n == 1


def answered(model, tokenizer, prompt, length):
    """A row whose solution is the model's most probable tokens, and these."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    asked = ids.shape[1]
    with torch.no_grad():
        for _ in range(length):
            best = model(input_ids=ids).logits[:, -1].argmax(dim=1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
    result = ids[0, asked:].tolist()
    return Row(prompt, tokenizer.decode(result), f"r:{prompt}", "s"), result


def exact_match(model, tokenizer, rows):
    aligned = aligned_parameters(model, Anatomy.of(model), blocks=1, patterns=[])
    return greedy_exact_match(
        CausalLearner(model, aligned),
        Layout(tokenizer),
        rows,
        pattern=r"(?s)^(.*)$",
        new_tokens=12,
        batch_size=3,
    )
