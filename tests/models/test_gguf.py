"""Learners out of GGUF files: the weights that are in them, and refusals in words."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vpretrain.language.learner.loading import load_model, load_tokenizer
from vpretrain.language.recipe.learner import LearnerSection
from vpretrain.models import loading
from vpretrain.system.errors import UserError

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def tiny():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
    )
    return AutoModelForCausalLM.from_config(config)


def write(path, model, architecture="qwen2"):
    """A file as llama.cpp's converter writes it, in float32."""
    gguf = pytest.importorskip("gguf")
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<|endoftext|>", *(chr(ord("!") + i) for i in range(38)), '!"']
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 39)
    writer.add_token_merges([f"{tokens[1]} {tokens[2]}"])
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def section(path):
    return LearnerSection(model=path, attention="eager")


def refusal(path):
    with pytest.raises(UserError) as caught:
        load_model(section(path), path, 0)
    (problem,) = caught.value.problems
    assert problem.where == "learner.model" and problem.value == path
    return problem


def test_a_gguf_file_is_a_model_that_can_be_saved(tmp_path):
    model = tiny().eval()
    path = write(tmp_path / "m.gguf", model)
    result = load_model(section(path), path, 0).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(result(ids).logits, model(ids).logits)
        result.save_pretrained(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert not result.config.tie_word_embeddings
    assert load_tokenizer(section(path), path)("!")["input_ids"]
    assert loading.load_config(path).hidden_size == 32


def test_a_tied_head_that_is_in_the_file_twice_is_tied(tmp_path):
    model = tiny()
    with torch.no_grad():  # the same matrix in two precisions
        table = model.model.embed_tokens.weight
        model.lm_head.weight.copy_(table)
        table.mul_(1 + 0.02 * torch.randn_like(table))
    path = write(tmp_path / "m.gguf", model)
    result = load_model(section(path), path, 0)
    assert result.config.tie_word_embeddings
    assert result.get_input_embeddings().weight is result.get_output_embeddings().weight
    assert torch.equal(result.get_input_embeddings().weight, model.lm_head.weight)


def test_an_architecture_that_is_not_supported(tmp_path):
    result = refusal(write(tmp_path / "m.gguf", tiny(), architecture="wavtokenizer-dec"))
    assert "wavtokenizer-dec is not supported" in result.message


@pytest.mark.parametrize("fraction", [0.05, 0.7])
def test_a_file_that_is_cut_short(tmp_path, fraction):
    path = tmp_path / "m.gguf"
    write(path, tiny())
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    assert "damaged or cut short" in refusal(str(path)).message


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    assert "no such file" in refusal(str(tmp_path / "none.gguf")).message


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    assert "vpretrain[gguf]" in refusal(str(tmp_path / "m.gguf")).accepted


def test_an_adapter_alone_does_not_find_a_gguf_file():
    with pytest.raises(ValueError, match="merge it"):
        LearnerSection(model="m.gguf", lora={"merge": False})
