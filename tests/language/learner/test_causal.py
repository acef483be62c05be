"""Learners of every family: parts against the whole, what S is, precision, checkpointing, and what
is refused.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.language.conftest import CONFIGS, downstream, tiny_batch, tiny_model
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.layout import check_layout
from vpretrain.language.learner.loading import checkpoint_activations, load_model, stored_dtype
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.language.learner.targets import candidates, mix, one_hot
from vpretrain.language.recipe.learner import LearnerSection
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system.errors import UserError

GEMMA = {
    "model_type": "gemma",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES = {
    **CONFIGS,
    "qwen2_tied": CONFIGS["qwen2"] | {"tie_word_embeddings": True},
    "qwen3": CONFIGS["qwen2"] | {"model_type": "qwen3", "head_dim": 8},
    "gemma": GEMMA,
    "gemma2": GEMMA | {"model_type": "gemma2", "final_logit_softcapping": 0.5, "sliding_window": 8},
    "gemma3": GEMMA | {"model_type": "gemma3_text", "sliding_window": 8},
    "cohere": CONFIGS["llama"] | {"model_type": "cohere", "logit_scale": 0.25, "pad_token_id": 0},
    "granite": CONFIGS["llama"] | {"model_type": "granite", "logits_scaling": 4.0},
}


def new_model(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **FAMILIES[family], bos_token_id=1, eos_token_id=2, initializer_range=0.15
    )
    return AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if family == "gemma2" else "sdpa"
    )


def learner_of(model, blocks=2, patterns=(), autocast=None):
    aligned = aligned_parameters(model, Anatomy.of(model), blocks=blocks, patterns=list(patterns))
    return CausalLearner(model, aligned, autocast=autocast)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_saved_model_comes_back_and_its_parts_are_the_whole(family, tmp_path):
    saved = new_model(family)
    saved.save_pretrained(tmp_path)
    section = LearnerSection(
        model=str(tmp_path), attention="eager" if family == "gemma2" else "sdpa"
    )
    model = load_model(section, str(tmp_path), seed=0)
    learner, batch = learner_of(model), tiny_batch()
    context = learner.forward(batch)
    whole = saved(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).logits[context.where]
    torch.testing.assert_close(context.logits, whole, rtol=1e-4, atol=1e-5)
    task = one_hot(context.labels)
    objective = learner.objective(context, task)
    suffix = objective.loss({n: p.detach() for n, p in learner.aligned.items()}, task.controls())
    assert float(suffix) == pytest.approx(float(learner.loss(context, task).detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "part"), [("gemma2", "cap"), ("cohere", "scale"), ("granite", "scale")]
)
def test_a_scale_or_cap_that_is_not_known_is_refused(family, part):
    learner = learner_of(new_model(family))
    setattr(learner.anatomy, part, None if part == "cap" else 1.0)
    with pytest.raises(UserError, match="do not give the logits of the whole"):
        check_layout(learner)


@pytest.mark.parametrize(
    ("family", "attention"), [("gemma2", "sdpa"), ("qwen2", "flash_attention_2")]
)
def test_attention_that_the_model_or_machine_lacks_is_named(family, attention, tmp_path):
    new_model(family).save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(LearnerSection(model=str(tmp_path), attention=attention), str(tmp_path), seed=0)
    (problem,) = caught.value.problems
    assert (
        problem.where == "learner.attention"
        and problem.value == attention
        and "eager" in problem.accepted
    )


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2"])
def test_checkpointed_blocks_give_the_same_gradients_and_estimates(family):
    result = {}
    for checkpointed in (False, True):
        model = new_model(family).train()
        if checkpointed:
            checkpoint_activations(model)
        learner = learner_of(model)
        runs = []
        context = learner.forward(tiny_batch())
        task = soft(context)
        estimates = [value(learner, context, task, estimator) for estimator in sorted(ESTIMATORS)]
        learner.anatomy.blocks[0].mlp.register_forward_pre_hook(
            lambda *_, runs=runs: runs.append(1)
        )
        learner.loss(context, task).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        result[checkpointed] = len(runs), gradient, estimates
    assert (result[False][0], result[True][0]) == (0, 1)  # run again in the backward pass
    torch.testing.assert_close(result[True][1], result[False][1], rtol=1e-5, atol=1e-7)
    for plain, again in zip(result[False][2], result[True][2], strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-7)


def test_an_architecture_that_cannot_run_blocks_again_is_refused(monkeypatch):
    model = new_model("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="activation_checkpointing"):
        checkpoint_activations(model)


def soft(context):
    ids = candidates(context.logits, context.labels, 5)
    generator = torch.Generator().manual_seed(0)
    proposal = torch.rand(ids.shape, generator=generator).softmax(dim=1)
    return mix(ids, proposal, torch.full((len(ids),), 0.3))


def value(learner, context, task, estimator, down=None):
    """``dV/d mass`` along a feedback gradient."""
    value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS[estimator])
    value_estimator.update([down or downstream(learner)], None, 0.0)
    return value_estimator(context, task).gradient[0]


def test_bfloat16_keeps_what_trains_in_float32():
    """A step of 1e-5 on a weight of 0.15 must not be lost: it would be in bfloat16 weights."""
    section = LearnerSection(
        config=FAMILIES["qwen2"] | {"initializer_range": 0.15}, dtype="bfloat16"
    )
    assert stored_dtype(section, None) == torch.float32
    assert stored_dtype(section.model_copy(update={"lora": object()}), None) == torch.bfloat16
    model = load_model(section, None, seed=0)
    learner = learner_of(model, autocast=torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    context = learner.forward(tiny_batch())
    assert context.logits.dtype == torch.bfloat16
    loss = learner.loss(context, one_hot(context.labels))
    assert loss.dtype == torch.float32
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0).step()
    moved = torch.cat(
        [(p.detach() != before[name]).flatten() for name, p in model.named_parameters()]
    )
    rounded = [
        (p.detach().bfloat16() != before[name].bfloat16()).flatten()
        for name, p in model.named_parameters()
    ]
    assert moved.float().mean() > 0.9 and torch.cat(rounded).float().mean() < 0.1


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_values_under_bfloat16_arithmetic(family):
    """The suffix is float32 whatever the learner computes in: what is left of the error is the
    prefix.
    """
    wide, narrow = tiny_model(family, torch.float64), tiny_model(family)
    wide.load_state_dict(narrow.state_dict())
    wide, narrow = learner_of(wide), learner_of(narrow, autocast=torch.bfloat16)
    down = downstream(wide)
    context = wide.forward(tiny_batch())
    task = soft(context)
    reference = value(wide, context, task, "double_backward", down)
    seen = narrow.forward(tiny_batch())
    assert seen.logits.dtype == torch.bfloat16
    objective = narrow.objective(seen, task)
    point = {name: p.detach() for name, p in narrow.aligned.items()}
    assert objective.loss(point, task.controls()).dtype == torch.float32
    result = value(
        narrow, seen, task, "central_difference", {n: g.float() for n, g in down.items()}
    )
    cosine = torch.nn.functional.cosine_similarity(
        result.double().flatten(), reference.double().flatten(), dim=0
    )
    assert cosine >= 0.999
