"""Which parameters are aligned."""

from functools import partial

import pytest

from tests.language.learner.test_causal import new_model
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.system.errors import UserError


def test_a_tied_head_is_in_s_once_and_not_in_the_last_blocks():
    model = new_model("qwen2_tied")
    anatomy = Anatomy.of(model)
    last = aligned_parameters(model, anatomy, blocks=1, patterns=[])
    assert "model.norm.weight" in last and not any(
        "embed" in name or "head" in name for name in last
    )
    everything = aligned_parameters(model, anatomy, blocks="all", patterns=[])
    assert sum(p.numel() for p in everything.values()) == sum(
        p.numel() for p in set(model.parameters())
    )
    named = aligned_parameters(
        model, anatomy, blocks=1, patterns=["lm_head.*", "model.embed_tokens.*"]
    )
    assert list(named) == ["model.embed_tokens.weight"]


def test_every_pattern_has_to_choose_something_that_trains():
    model = new_model("qwen2")
    model.model.layers[0].requires_grad_(False)
    anatomy = Anatomy.of(model)
    with pytest.raises(UserError) as caught:
        aligned_parameters(
            model, anatomy, blocks=1, patterns=["*layers.2*", "*layer.1*", "*layers.0.mlp*"]
        )
    misspelt, frozen = caught.value.problems
    assert (
        misspelt.value == "*layer.1*"
        and "model.layers.1.self_attn.q_proj.weight" in misspelt.accepted
    )
    assert frozen.value == "*layers.0.mlp*" and "frozen" in frozen.message
    mixed = aligned_parameters(model, anatomy, blocks=1, patterns=["*.mlp.up_proj.weight"])
    assert list(mixed) == ["model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"]


def test_the_papers_aligned_parameters_are_the_last_blocks_alone():
    """The paper's S is "the last two layers": neither final norm nor head."""
    model = new_model("qwen2")
    anatomy = Anatomy.of(model)
    blocks = {f"model.layers.2.{name}" for name, _ in anatomy.blocks[2].named_parameters()}
    chosen = partial(aligned_parameters, model, anatomy, blocks=1, patterns=[])
    assert set(chosen(norm=False, head=False)) == blocks
    assert set(chosen(norm=False)) == blocks | {"lm_head.weight"}
    assert set(chosen(head=False)) == blocks | {"model.norm.weight"}
    learner = CausalLearner(model, chosen(norm=False, head=False))
    assert not learner.suffix.reaches_head and not learner.suffix.whole
