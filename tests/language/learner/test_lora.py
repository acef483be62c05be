"""LoRA: adapters alone train and are S, values are exact, and what is saved opens where people open
it.
"""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.language.conftest import CONFIGS, downstream, tiny_batch, tiny_model
from tests.language.learner.test_causal import soft, value
from vpretrain.language.learner import lora
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.loading import checkpoint_activations, load_model
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.language.recipe.learner import LearnerSection, Lora
from vpretrain.system.errors import UserError


def adapted_model(family="qwen2", dtype=torch.float32, trained=True, base=None, **keys):
    """PEFT's view and the model; trained: both factors are as if some steps had been taken."""
    model = tiny_model(family, dtype)
    adapted = lora.attach(model, Lora(**{"r": 4, "alpha": 8, **keys}), base=base, seed=0)
    if trained:
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return adapted, model


def learner_of(model, autocast=None, patterns=()):
    aligned = aligned_parameters(model, Anatomy.of(model), blocks=2, patterns=list(patterns))
    return CausalLearner(model, aligned, autocast=autocast)


def logits(model):
    batch = tiny_batch()
    with torch.no_grad():
        return model.eval()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).logits


def test_adapters_alone_train_and_are_s(family):
    before = logits(tiny_model(family))
    _, model = adapted_model(family, trained=False)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    learner = learner_of(model)
    assert trained and all("lora_" in name for name in trained)
    assert set(learner.aligned) == {name for name in trained if ".0." not in name.split("lora_")[0]}
    context = learner.forward(tiny_batch())
    learner.loss(context, soft(context)).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_adapters_start_from_the_seed_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = lora.attach(tiny_model("qwen2"), Lora(), base=None, seed=3).state_dict()
    torch.manual_seed(5)
    model = tiny_model("qwen2")
    torch.manual_seed(5)
    second = lora.attach(model, Lora(), base=None, seed=3).state_dict()
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = lora.attach(tiny_model("qwen2"), Lora(), base=None, seed=4).state_dict()
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_estimators_agree_on_adapters(family, checkpointed):
    """Central difference (and forward mode) against double backward in float64, S being
    adapters.
    """
    _, model = adapted_model(family, torch.float64)
    if checkpointed:
        checkpoint_activations(model.train())
    learner = learner_of(model)
    context = learner.forward(tiny_batch())
    task, down = soft(context), downstream(learner)
    reference = value(learner, context, task, "double_backward", down).flatten()
    for estimator, least in [("central_difference", 0.9999), ("forward_mode", 0.999999)]:
        result = value(learner, context, task, estimator, down).flatten()
        assert torch.nn.functional.cosine_similarity(result, reference, dim=0) >= least
        assert float(result.norm() / reference.norm()) == pytest.approx(1, abs=1e-3)


def test_bfloat16_base_with_float32_adapters():
    _, model = adapted_model(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    learner = learner_of(model, autocast=torch.bfloat16)
    context = learner.forward(tiny_batch())
    learner.loss(context, soft(context)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    reference = value(learner, context, soft(context), "double_backward").flatten()
    result = value(learner, context, soft(context), "central_difference").flatten()
    assert torch.nn.functional.cosine_similarity(result, reference, dim=0) >= 0.9999


def test_rounding_of_trained_adapters_is_not_taken_for_another_architecture():
    """Their base computes in bfloat16, they in float32."""
    _, model = adapted_model(dtype=torch.bfloat16, r=2, alpha=16)
    assert learner_of(model, autocast=torch.bfloat16).aligned


def test_what_is_saved_opens_and_computes_the_same(family, tmp_path):
    base = tmp_path / "base"
    tiny_model(family).save_pretrained(base)
    adapted, model = adapted_model(family, base=str(base))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = logits(model)

    lora.save(adapted, tmp_path / "whole", merge=True)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert not any("lora" in name for name, _ in whole.named_parameters())
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-5)
    by_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "whole" / "adapter"
    )
    torch.testing.assert_close(logits(by_peft), expected, rtol=1e-4, atol=1e-5)

    lora.save(adapted, tmp_path / "alone", merge=False)
    assert not list((tmp_path / "alone").glob("model*.safetensors"))
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "alone")),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )
    again = load_model(
        LearnerSection(model=str(tmp_path / "alone")), str(tmp_path / "alone"), seed=0
    )
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad and "lora" not in name for name, p in again.named_parameters())

    for (
        name,
        parameter,
    ) in model.named_parameters():  # saving while training must leave no rounding behind
        assert torch.equal(parameter, weights[name])


def test_merging_into_bfloat16_loses_nothing(tmp_path):
    adapted, model = adapted_model(dtype=torch.bfloat16)
    lora.save(adapted, tmp_path, merge=True)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(logits(whole), logits(model.float()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "names"), [("qwen2", "q_proj"), ("gpt2", "c_attn")])
def test_targets_that_match_nothing_are_refused_with_the_names(family, names):
    with pytest.raises(UserError) as caught:
        lora.attach(tiny_model(family), Lora(targets=[names, "query"]), base=None, seed=0)
    (problem,) = caught.value.problems
    assert (
        problem.where == "learner.lora.targets"
        and problem.value == "query"
        and names in problem.accepted
    )
    with pytest.raises(UserError, match="at least one"):
        lora.attach(tiny_model(family), Lora(targets=[]), base=None, seed=0)


def test_a_tied_head_is_no_target():
    assert CONFIGS["llama"]["tie_word_embeddings"] and not CONFIGS["qwen2"]["tie_word_embeddings"]
    with pytest.raises(UserError, match="lm_head"):
        lora.attach(tiny_model("llama"), Lora(targets=["lm_head"]), base=None, seed=0)
    _, model = adapted_model("qwen2", targets=["lm_head"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "lm_head.lora_A.default.weight",
        "lm_head.lora_B.default.weight",
    ]


def test_patterns_over_frozen_weights_are_explained():
    _, model = adapted_model()
    with pytest.raises(UserError, match="frozen"):
        learner_of(model, patterns=["*q_proj.base_layer.weight"])
    chosen = learner_of(model, patterns=["*layers.1.*q_proj*"]).aligned
    assert len(chosen) == 2 and all("lora_" in name for name in chosen)


def test_an_adapter_that_names_no_base_is_refused(tmp_path):
    adapted, _ = adapted_model()
    lora.save(adapted, tmp_path, merge=False)
    with pytest.raises(UserError, match="base_model_name_or_path"):
        load_model(LearnerSection(model=str(tmp_path)), str(tmp_path), seed=0)


def test_an_adapter_that_is_its_own_base_is_refused(tmp_path):
    for name, base in (("a", "b"), ("b", "a"), ("c", "c")):
        (tmp_path / name).mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / base)}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    for name in "abc":
        with pytest.raises(UserError, match="its own base"):
            lora.base_of(tmp_path / name)


@pytest.mark.parametrize("merge", [True, False])
def test_a_saved_adapter_is_loaded_into_a_fresh_one(merge, tmp_path):
    """``explain`` reopens a run so: S and a reference's adapters are those that were trained."""
    adapted, model = adapted_model()
    lora.save(adapted, tmp_path, merge=merge)
    _, again = adapted_model(trained=False)
    assert not torch.equal(logits(again), logits(model))
    lora.load(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    _, smaller = adapted_model(r=2)
    with pytest.raises(UserError, match="adapter"):
        lora.load(smaller, tmp_path)


def test_a_base_that_holds_an_adapter_is_not_rounded(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path / "base")
    adapted, _ = adapted_model(base=str(tmp_path / "base"))
    for merge in (True, False):
        lora.save(adapted, tmp_path / str(merge), merge=merge)
    section = LearnerSection(model="m", dtype="bfloat16", lora=Lora())
    for folder, dtype in (("base", "bfloat16"), ("True", "float32"), ("False", "float32")):
        model = load_model(section, str(tmp_path / folder), seed=0)
        assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
