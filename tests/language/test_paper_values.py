"""The paper's values in one table, and every recipe of its language runs against them."""

from pathlib import Path

import pytest

from tests.vision.test_recipes import value_at
from vpretrain.config import recipe as recipes
from vpretrain.config.sweep import Sweep
from vpretrain.run.modalities import SCHEMAS

FOLDER = Path(__file__).parents[2] / "recipes" / "language" / "paper"
LORA = {
    "r": 8,
    "alpha": 16,
    "dropout": 0.05,
    "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "merge": True,
}
EVERY = {  # v1 A.1 and v2 F.1, F.2: the same in every run
    "arm": "ascent",
    "designer.kind": "ascent",
    "designer.candidates": 64,
    "designer.gate_max": 0.5,
    "designer.hidden": 256,
    "designer.layers": 6,
    "designer.heads": 4,
    "designer.updates": 1,
    "value.unit": "raw",
    "value.alignment": "dot",
    "value.meta_period": 8,
    "value.memory": 0.0,
    "value.shrink": False,
    "value.guard_window": 0,
    "learner.dtype": "bfloat16",
    "learner.loss_mean": "example",
    "learner.aligned_blocks": 2,
    "learner.aligned_norm": False,
    "learner.aligned_head": False,
    "learner.final_fraction": 0.0,
    "data.feedback.loss_mean": "example",
    "data.feedback.conflict": "sum",
    "data.feedback.scale": "raw",
}
GSM8K = {"data.feedback.rows.rows": 1024, "data.feedback.rows.path": Path("gsm8k/train.jsonl")}
FULL = {
    **EVERY,
    "learner.model": "Qwen/Qwen2.5-0.5B",
    "learner.learning_rate": 1.5e-5,
    "data.batch_size": 4,
    "learner.accumulate": 32,
    "learner.warmup_fraction": 0.03,
    "learner.weight_decay": 0.0,
    "learner.clip_norm": 1.0,
    "learner.lora": None,
    "data.window_tokens": 512,
}
ADAPTERS = {
    **EVERY,
    "designer.learning_rate": 1e-4,
    "learner.learning_rate": 2e-4,
    "data.batch_size": 4,
    "learner.accumulate": 8,
    "data.window_tokens": 1024,
    "data.feedback.max_tokens": 512,
    "value.meta_batch.window_tokens": 256,
}
FIRST_VERSION = {
    **EVERY,
    **GSM8K,
    "budget.steps": 2000,
    "data.window_tokens": 1024,
    "data.packing": True,
    "data.batch_size": 4,
    "learner.accumulate": 8,
    "data.stream.0.rows.format": "qa@1",
}
OPENMATH = "nvidia/OpenMathReasoning"
NUMINA = {"data.stream.0.rows.path": "AI-MO/NuminaMath-CoT"}
PAPER = {
    "qwen2.5-0.5b": {**FULL, **GSM8K, **NUMINA, "budget.steps": 2 * 859_494 // 128},
    "qwen2.5-0.5b-lora": {
        **ADAPTERS,
        **GSM8K,
        "learner.model": "Qwen/Qwen2.5-0.5B",
        "budget.steps": 2000,
        "data.stream.0.rows.path": "TIGER-Lab/MathInstruct",
        "data.stream.1.rows.path": "ise-uiuc/Magicoder-OSS-Instruct-75K",
        "data.stream.2.rows.path": "tatsu-lab/alpaca",
    },
    "qwen1.5-0.5b": {**FIRST_VERSION, **NUMINA, "learner.model": "Qwen/Qwen1.5-0.5B"},
    "qwen1.5-4b": {**FIRST_VERSION, **NUMINA, "learner.model": "Qwen/Qwen1.5-4B"},
    "qwen1.5-7b": {**FIRST_VERSION, **NUMINA, "learner.model": "Qwen/Qwen1.5-7B"},
    "decontaminated": {**FIRST_VERSION, "learner.model": "Qwen/Qwen1.5-4B"},
    "multitask": {
        **EVERY,
        "data.window_tokens": 512,
        **{f"data.stream.{i}.weight": 0.2333 for i in range(3)},
        **{f"data.stream.{i}.weight": 0.1 for i in range(3, 6)},
        **{f"data.stream.{i}.rows.rows": 50_000 for i in range(3)},
        **{f"data.stream.{i}.rows.rows": 5_000 for i in range(3, 6)},
        **{f"data.feedback.tasks.{t}.weight": 1.0 for t in ("mathematics", "code", "general")},
    },
    "multitask-aligned": {
        **EVERY,
        "data.feedback.tasks.mathematics.rows.format": "metamathqa@1",
        "data.feedback.tasks.code.rows.format": "magicoder@1",
        "data.feedback.tasks.general.rows.format": "mmlu@1",
        "data.stream.3.rows.format": None,
        **{f"data.feedback.tasks.{t}.rows.rows": 1024 for t in ("mathematics", "code", "general")},
    },
    "figure2": {**EVERY, "budget.seconds": 900, "data.stream.0.rows.path": OPENMATH},
    "table10": {**EVERY, "budget.seconds": 600, "data.stream.0.rows.path": OPENMATH},
}
NOT_GIVEN = (
    "packing: false  # not given",
    "batch_size: 32  # not given",
    "learning_rate: 1e-4  # not given",
    "gate_price: 0.0  # not given",
    "start_step: 0  # not given",
    "What evaluation prompts look like is not given",
    "The paper does not give its budget in seconds",
)


def loaded(name):
    return recipes.load(FOLDER / f"{name}.yaml", schemas=SCHEMAS)


@pytest.mark.parametrize("name", PAPER)
def test_every_value_is_the_papers(name):
    recipe = loaded(name)
    result = {key: value_at(recipe, key) for key in PAPER[name]}
    assert result == PAPER[name]


def test_every_recipe_is_in_the_table():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PAPER)


@pytest.mark.parametrize("name", ["qwen2.5-0.5b-lora", "qwen1.5-0.5b", "qwen1.5-4b", "qwen1.5-7b"])
def test_adapters_are_those_of_the_branch(name):
    assert loaded(name).learner.lora.model_dump() == LORA


@pytest.mark.parametrize("name", ["qwen1.5-0.5b", "qwen1.5-4b", "qwen1.5-7b", "decontaminated"])
def test_the_first_version_searches_five_rates_and_stops_early(name):
    recipe = loaded(name)
    sweep = Sweep(**recipe.sweep)
    assert sweep.keys == {"learner.learning_rate": [5e-6, 6.25e-6, 7.5e-6, 8.75e-6, 1e-5]}
    assert recipe.checkpoint.keep_best == "dev/nll" and recipe.evaluate.every


def test_what_comes_from_gsm8k_or_math_is_left_out_of_mathinstruct():
    (rows,) = [each.rows for each in loaded("qwen2.5-0.5b-lora").data.stream[:1]]
    left_out = rows.where["source"].none_of
    assert sum("gsm" in name for name in left_out) == 3
    assert sum("MATH" in name for name in left_out) == 2


def test_what_is_not_given_is_said():
    text = (FOLDER / "qwen2.5-0.5b.yaml").read_text(encoding="utf-8")
    assert [words for words in NOT_GIVEN if words not in text] == []
