"""Costs counted from shapes, held against what is counted while a step runs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from tests.designers import of_every_kind
from tests.language.conftest import CONFIGS
from tests.run.test_train import tiny_recipe
from vpretrain.language.data.batch import padded
from vpretrain.language.data.rows import Document
from vpretrain.language.learner import predictions
from vpretrain.language.learner.cost_model import (
    KINDS,
    SIZES,
    Setting,
    Shape,
    flops,
    predicted,
    resident,
)
from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.networks import FieldArm
from vpretrain.language.steering.scorer import CandidateScorer, ScorerInputs, scorer_cost
from vpretrain.language.steering.topk_augmentor import AscentArm, TopKAugmentor, augmentor_cost
from vpretrain.method.accumulation import MicroBatches, next_batches
from vpretrain.run.build import new_step
from vpretrain.run.modalities import MODALITIES
from vpretrain.system.errors import UserError

LARGE = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "vocab_size": 4000,
}


CENTRAL, ONE_SIDED = ("central_difference", 2), ("one_sided_difference", 1)


@pytest.mark.parametrize(
    ("arm", "estimator", "passes"),
    [
        *((arm, *CENTRAL) for arm in ("onehot", "closed_form", "token_weights", "field", "ascent")),
        ("token_weights", *ONE_SIDED),
    ],
)
def test_flops_of_a_plain_step_are_those_that_are_counted(arm, estimator, passes, monkeypatch):
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", 0)
    words = ("value.meta_period=1000", f"value.estimator={estimator}", f"arm={arm}")
    recipe = tiny_recipe(*of_every_kind(ARMS, candidates=8), *words)
    assert Setting.of(recipe, SIZES["0.5B"], "cpu").passes == passes
    learner = recipe.learner.model_copy(update={"config": LARGE, "model": None, "prepare": None})
    recipe = recipe.model_copy(update={"learner": learner})
    modality = MODALITIES["language"]()
    parts = modality.build(recipe, modality.load(recipe))
    step = new_step(recipe, parts)
    step(next_batches(parts.stream, 1), 0.0)  # a meta step, so that there is a direction
    context = parts.learner.forward(next(parts.stream))
    with FlopCounterMode(display=False) as counter:
        step(MicroBatches((context.batch,)), 0.0)
    shape = Shape.of(parts.learner.model.config.to_dict())
    designer = ARMS.keys_of(recipe, AscentArm if arm == "ascent" else FieldArm)
    at = Setting(  # a window of 0: the counter leaves attention out on a CPU
        tokens=context.batch.input_ids.numel(),
        predicted=len(context.labels),
        window=0,
        candidates=8,
        period=10**9,
        passes=passes,
        aligned=recipe.learner.aligned_blocks,
        hidden=designer.hidden,
        layers=designer.layers,
    )
    result = flops(shape, at, KINDS[arm])
    assert sum(result.values()) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_flops_of_a_designers_network_are_those_that_are_counted(network):
    """A forward pass, and one with its gradient, in which the scores are made twice."""
    made, cost = network
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made()
    assert cost.forward == pytest.approx(counter.get_total_flops(), rel=0.1)
    with FlopCounterMode(display=False) as counter:
        scores, gate = made()
        (scores.sum() + gate.sum()).backward()
    assert cost.update == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.fixture(params=["of tokens", "of hidden states"])
def network(request):
    torch.manual_seed(0)
    rows, window, k, vocabulary, width, hidden, layers = 4, 16, 24, 500, 40, 64, 2
    shape = replace(SIZES["0.5B"], vocabulary=vocabulary, width=width)
    generator = torch.Generator().manual_seed(1)
    documents = [
        Document(
            torch.randint(vocabulary, (window,), generator=generator).tolist(),
            [True] * 16,
            f"d:{row}",
            "s",
        )
        for row in range(rows)
    ]
    batch = padded(documents, pad_id=0)
    row, at = batch.predicted.nonzero(as_tuple=True)
    ids = torch.stack([torch.randperm(vocabulary, generator=generator)[:k] for _ in row])
    # A window of 0: the counter leaves attention out on a CPU.
    setting = Setting(
        tokens=rows * window,
        predicted=len(row),
        window=0,
        candidates=k,
        hidden=hidden,
        layers=layers,
    )
    if request.param == "of tokens":
        augmentor = TopKAugmentor(vocabulary, hidden=hidden, layers=layers, heads=4)
        cost = augmentor_cost(shape, setting)
        assert cost.parameters == pytest.approx(
            sum(p.numel() for p in augmentor.parameters()), rel=0.1
        )
        return lambda: augmentor(batch, (row, at - 1), ids), cost
    scorer = CandidateScorer(width, hidden=hidden, layers=layers, heads=4, gated=True)
    hidden = torch.randn(rows, window, width)
    inputs = ScorerInputs(hidden, batch.document, (row, at - 1), ids, torch.randn(ids.shape))
    embedding = torch.randn(vocabulary, width)
    return lambda: scorer(inputs, embedding), scorer_cost(shape, setting)


def test_steering_costs_less_where_the_learner_is_larger():
    at = Setting(tokens=4096, predicted=4096, window=1024, device="cuda")
    for arm in ("field", "closed_form", "token_weights"):
        costs = {
            name: predicted(shape, at, ["onehot", arm])["ratios"][arm]
            for name, shape in SIZES.items()
        }
        assert 1 < costs["72B"]["flops"] < costs["0.5B"]["flops"] < 1.35
        assert all(1 <= cost["bytes"] < 1.1 for cost in costs.values())


def test_parts():
    shape = Shape.of(AutoConfig.for_model(**CONFIGS["qwen2"]).to_dict())
    at = Setting(tokens=24, predicted=24, window=12)
    assert (
        flops(shape, at, KINDS["onehot"])["meta"]
        == 0
        == resident(shape, at, KINDS["onehot"])["directions"]
    )
    assert SIZES["0.5B"].parameters == pytest.approx(
        494e6, rel=0.01
    )  # as published, biases and norms apart
    assert SIZES["7B"].parameters == pytest.approx(7.6e9, rel=0.01)
    assert SIZES["72B"].parameters == pytest.approx(72.7e9, rel=0.01)
    with pytest.raises(UserError, match="feedback_sft"):
        predicted(shape, at, ["onehot", "feedback_sft"])
