"""Twelve tiny architectures from their configurations: two steered steps, saved, opened again, the
same logits.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.language.conftest import tiny_batch
from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.language.data import word_problems
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import UserError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
NARROW = SIZES | {"head_dim": 8}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1}
QWEN_EXPERTS = EXPERTS | {"num_experts": 4, "moe_intermediate_size": 24}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
ARCHITECTURES = {
    "llama": SIZES | {"tie_word_embeddings": True},
    "qwen2": SIZES | {"tie_word_embeddings": False},
    "qwen3": NARROW | {"tie_word_embeddings": True},
    "qwen3_moe": NARROW | QWEN_EXPERTS,
    "gemma2": NARROW
    | SLIDING
    | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "gemma3_text": NARROW | SLIDING | {"query_pre_attn_scalar": 8},
    "mistral": NARROW | {"sliding_window": 8},
    "mixtral": NARROW | EXPERTS | {"num_local_experts": 4},
    "phi3": SIZES | {"sliding_window": 8},
    "olmo2": SIZES,
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "initializer_range": 0.15,
    },
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
}
HYBRID = {
    "lfm2": ARCHITECTURES["lfm2"],
    "falcon_h1": NARROW
    | {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "lm_head_multiplier": 0.5,
    },
    "qwen3_next": NARROW | LINEAR | QWEN_EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3_5_text": NARROW | LINEAR,
}


def tiny(kind, config, vocabulary=96):
    torch.manual_seed(0)
    resolved = AutoConfig.for_model(
        kind, **config, vocab_size=vocabulary, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    attention = "eager" if kind == "gemma2" else "sdpa"
    return AutoModelForCausalLM.from_config(resolved, attn_implementation=attention)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Model folders with the generator's tokenizer, each made once."""
    made = {}

    def folder_of(kind, config):
        if kind not in made:
            folder, tokenizer = tmp_path_factory.mktemp(kind), word_problems.tokenizer()
            tiny(kind, config, len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return folder_of


def recipe_of(folder, *overrides):
    return tiny_recipe(
        "learner.config=null",
        f"learner.model={folder}",
        "arm=token_weights",
        "budget.steps=2",
        "value.settle_steps=0",
        "value.meta_period=1",
        "evaluate.answer=null",
        "data.evaluation.test.rows=8",
        "data.stream.0.rows.rows=20",
        "data.stream.1.rows.rows=20",
        "data.feedback.rows.rows=16",
        "data.feedback.batch_size=4",
        *overrides,
    )


ADAPTED = {"gemma2", "gpt2", "lfm2", "llama", "qwen3_moe"}
"""A kind each that is tried with adapters too; all in all four ways with ``-m slow``."""


@pytest.mark.parametrize(
    ("kind", "adapters", "dtype"),
    [
        pytest.param(
            kind,
            adapters,
            dtype,
            id=f"{kind}-{'lora' if adapters else 'full'}-{dtype}",
            marks=[]
            if (adapters, dtype) == (False, "float32")
            or ((adapters, dtype) == (True, "bfloat16") and kind in ADAPTED)
            else [pytest.mark.slow],
        )
        for kind in sorted(ARCHITECTURES)
        for adapters in (False, True)
        for dtype in ("float32", "bfloat16")
    ],
)
def test_two_steered_steps_saved_and_opened_again(kind, adapters, dtype, folder_of, tmp_path):
    recipe = recipe_of(
        folder_of(kind, ARCHITECTURES[kind]),
        f"learner.dtype={dtype}",
        f"learner.attention={'eager' if kind == 'gemma2' else 'sdpa'}",
        f"data.packing={str(kind not in HYBRID).lower()}",
        *(["learner.lora={r: 2}"] if adapters else []),
    )
    parts = Language().build(recipe, Language().load(recipe))
    model = parts.learner.model.eval()
    ids = torch.arange(3, 40)[None]
    before = model(input_ids=ids).logits.detach().float()
    result = train(Run(recipe, parts))
    assert result.spent.steps == 2 and result.history[-1]["weight_spread"] > 0
    parts.save(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation=recipe.learner.attention
    )
    with torch.no_grad():
        # Adapters are merged into float32 weights; in bfloat16 a token may go to another expert.
        ours, theirs = (m.float().eval()(input_ids=ids).logits for m in (model, again))
    assert not torch.allclose(ours, before, atol=1e-3)
    # Below adapters in bfloat16 buffers are rounded too (Gemma's scale of the embeddings).
    tolerance = 1e-2 if adapters and dtype == "bfloat16" else 1e-4
    torch.testing.assert_close(theirs, ours, rtol=tolerance, atol=tolerance * float(ours.std()))


@pytest.mark.parametrize("kind", sorted(HYBRID))
def test_layers_that_carry_a_state_take_one_document_a_row(kind, folder_of, monkeypatch):
    """Packing is refused before any weight is loaded, by the key that mends it."""
    folder = folder_of(kind, HYBRID[kind])
    recipe = recipe_of(folder, "data.packing=false")
    learner = Language().build(recipe, Language().load(recipe)).learner
    assert learner.forward(tiny_batch()).predictions.labels.numel() > 0
    monkeypatch.setattr("vpretrain.language.modality.load_model", None)
    (problem,) = Language().check(recipe_of(folder)).problems
    assert problem.where == "data.packing" and "row of its own" in problem.message
    with pytest.raises(UserError, match=r"data\.packing"):
        Language().load(recipe_of(folder))


def test_a_router_loss_that_is_not_known_is_refused_before_anything_is_loaded(folder_of):
    config = NARROW | {"num_local_experts": 4, "num_experts_per_tok": 2}
    folder = folder_of("granitemoe", config)
    recipe = recipe_of(folder)
    shapes = tiny("granitemoe", config)
    shapes.config.output_router_logits = True
    shapes.config.router_aux_loss_coef = None
    shapes.config.save_pretrained(folder)
    (problem,) = Language().check(recipe).problems
    assert problem.where == "learner.model" and "router loss" in problem.message
