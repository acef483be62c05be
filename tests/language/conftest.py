"""Tiny learners of three families and tiny batches; everything is random weights on the CPU."""

from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import padded
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters

CONFIGS = {
    "qwen2": {
        "model_type": "qwen2",
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 40,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}


def tiny_model(family, dtype=torch.float32, seed=0, attention="sdpa"):
    """A random model whose logits are not nearly flat (weights drawn wider than the libraries'
    default).
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**CONFIGS[family], initializer_range=0.15)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = partial(rms_norm, module)
    return model


def rms_norm(module, x):
    """transformers' RMSNorm rounds to float32 whatever it is given, which would hide errors below
    1e-4.
    """
    return (
        module.weight
        * x
        * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + module.variance_epsilon)
    )


def tiny_learner(
    family="qwen2", dtype=torch.float32, blocks=2, patterns=(), seed=0, attention="sdpa"
):
    """The same behind the learner role."""
    model = tiny_model(family, dtype, seed, attention)
    aligned = aligned_parameters(model, Anatomy.of(model), blocks=blocks, patterns=list(patterns))
    return CausalLearner(model, aligned)


def tiny_batch(rows=3, length=12, seed=1, vocabulary=40):
    """Random documents of unequal length whose first third is a masked prompt."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for row in range(rows):
        size = length - row
        ids = torch.randint(3, vocabulary, (size,), generator=generator).tolist()
        documents.append(
            Document(ids, [at >= size // 3 for at in range(size)], f"test:{row}", "test")
        )
    return padded(documents, pad_id=0)


def downstream(learner, seed=7):
    """A feedback gradient over S from another batch."""
    losses, _ = learner.token_losses(tiny_batch(seed=seed))
    names, parameters = zip(*learner.aligned.items(), strict=True)
    return dict(zip(names, torch.autograd.grad(losses.mean(), parameters), strict=True))


@pytest.fixture(params=sorted(CONFIGS))
def family(request):
    """Every layout of model that the tests know."""
    return request.param
