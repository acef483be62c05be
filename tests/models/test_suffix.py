"""Whether a forward pass is random, told from the modules."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vpretrain.models.suffix import drops_out

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
NONE = dict.fromkeys(
    (
        "attention_dropout",
        "residual_dropout",
        "embedding_dropout",
        "hidden_dropout",
        "attn_pdrop",
        "resid_pdrop",
        "embd_pdrop",
    ),
    0.0,
)
SHAPES = {
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "bloom": {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2},
}


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("llama", {}),
        ("llama", {"attention_dropout": 0.5}),
        ("gpt2", {}),
        ("gpt2", {"resid_pdrop": 0.5}),
        ("gpt2", {"attn_pdrop": 0.5}),
        ("bloom", {}),
        ("bloom", {"attention_dropout": 0.5}),
        ("falcon", {}),
        ("falcon", {"hidden_dropout": 0.5}),
        ("starcoder2", {}),
        ("starcoder2", {"residual_dropout": 0.5}),
    ],
)
def test_what_is_told_of_dropout_is_what_two_passes_show(kind, rates):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**(SHAPES.get(kind, SMALL) | NONE | rates))
    model = AutoModelForCausalLM.from_config(config).train()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        one, other = (model(input_ids=ids, use_cache=False).logits for _ in range(2))
    assert drops_out(model) == (not torch.equal(one, other)) == bool(rates)
    assert not drops_out(model.eval())
