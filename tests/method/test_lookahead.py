"""Looking ahead: copies of S that are fine-tuned on the feedback, and what tasks are worth by them."""

import copy

import pytest
import torch

from tests.method.toy import TRUTH, Context, PairWeights, Regression, Weights, pairs
from vpretrain.method import vectors
from vpretrain.method.accumulation import MicroBatches
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.feedback import RandomDirection
from vpretrain.method.lookahead import Lookahead
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Feedback
from vpretrain.method.step import steered_step
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system.errors import NonFinite

RATE = 0.05


class Rows(Feedback):
    """Batches of pairs under one law, each with its own draws."""

    def __init__(self, seeds=(1, 2), law=TRUTH):
        self.draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.law = law

    def loss(self, model, at):
        x = torch.randn(32, 3, generator=self.draws[at])
        return ((model(x) - x @ self.law.T) ** 2).mean()

    def gradients(self, learner, only=None):
        return [
            {"weight": torch.autograd.grad(self.loss(learner.model, at), learner.model.weight)[0]}
            for at in (range(len(self.draws)) if only is None else [only])
        ]

    def state_dict(self):
        return {"draws": [draw.get_state() for draw in self.draws]}

    def load_state_dict(self, state):
        for draw, saved in zip(self.draws, state["draws"], strict=True):
            draw.set_state(saved)


def ahead(feedback=None, steps=3, memory=0.0, rate=RATE):
    feedback = feedback or Rows()
    return Lookahead(feedback, batches=2, steps=steps, learning_rate=rate, memory=memory)


def moved_learner():
    learner = Regression()
    torch.manual_seed(3)
    torch.nn.init.normal_(learner.model.weight)
    return learner


def test_ways_lead_back_from_copies_that_were_fine_tuned():
    """The slow definition: Adam on a copy of the model, each feedback batch its own."""
    learner, rows = moved_learner(), Rows()
    for at, way in enumerate(ahead().gradients(learner)):
        model = copy.deepcopy(learner.model)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        for _ in range(3):
            optimizer.zero_grad()
            rows.loss(model, at).backward()
            optimizer.step()
        expected = learner.model.weight - model.weight
        assert torch.allclose(way["weight"], expected, atol=1e-6) and expected.abs().max() > RATE


def test_the_learner_is_as_it_was():
    learner = moved_learner()
    before = learner.model.weight.detach().clone()
    ahead().gradients(learner)
    assert torch.equal(learner.model.weight, before) and learner.model.weight.grad is None
    with pytest.raises(NonFinite):
        ahead(Rows(law=torch.tensor([[float("nan"), 0.0, 0.0]]))).gradients(learner)
    assert torch.equal(learner.model.weight, before)

    class Raises(Rows):
        def loss(self, model, at):
            raise RuntimeError("no rows")

    with pytest.raises(RuntimeError, match="no rows"):
        ahead(Raises()).gradients(learner)
    assert torch.equal(learner.model.weight, before)


def test_a_graph_that_is_alive_stays_good():
    """A host's loop asks for feedback between its forward and its backward pass."""
    learner = moved_learner()
    x = torch.randn(4, 3)
    loss = torch.tanh(learner.model(torch.tanh(x @ learner.model.weight.T) * x)).sum()
    expected = torch.autograd.grad(loss, learner.model.weight, retain_graph=True)[0]
    ahead().gradients(learner)
    loss.backward()
    assert torch.equal(learner.model.weight.grad, expected)


def test_the_way_of_one_batch_knows_nothing_of_the_others():
    learner = moved_learner()

    def second_ways(seeds):
        looking = ahead(Rows(seeds), memory=0.5)
        looking.gradients(learner)
        return [way["weight"].clone() for way in looking.gradients(learner)]

    (one, other), (same, another) = second_ways((1, 2)), second_ways((1, 5))
    assert torch.equal(one, same) and not torch.equal(other, another)


def test_memory_lets_the_ways_grow():
    learner = moved_learner()

    def length(memory):
        looking = ahead(memory=memory, rate=1e-3)
        for _ in range(5):
            way = looking.gradients(learner)[0]
        return float(vectors.norm(way))

    assert length(0.0) < 0.5 * length(0.9)


def test_a_value_is_the_fall_of_the_loss_on_the_way():
    learner, context = moved_learner(), Context(*pairs(torch.Generator().manual_seed(0)))
    task = Weights(torch.rand(16))
    (way, _) = ahead().gradients(learner)
    value_of = ValueEstimator(learner, Alignment("lookahead"), ESTIMATORS["double_backward"])
    value_of.update([way], None, 0.0)
    there = moved_learner()
    with torch.no_grad():
        there.model.weight -= way["weight"]
    found = value_of(context, task)
    fall = (learner.loss(context, task) - there.loss(context, task)).detach()
    assert float(found.value) == pytest.approx(float(fall), rel=1e-5)
    each = [
        ((context.x @ model.weight.T - context.y)[:, 0] ** 2 / 16).detach()
        for model in (learner.model, there.model)
    ]
    assert torch.allclose(found.gradient[0], each[0] - each[1], atol=1e-6)


def test_a_short_way_is_valued_as_the_paper_values_it():
    learner, context = moved_learner(), Context(*pairs(torch.Generator().manual_seed(0)))
    task = Weights(torch.rand(16))
    ways = ahead(rate=1e-4).gradients(learner)
    values = []
    for name in ("lookahead", "dot"):
        value_of = ValueEstimator(learner, Alignment(name), ESTIMATORS["double_backward"])
        value_of.update(ways, None, 0.0)
        values.append(float(value_of(context, task).value))
    assert values[0] == pytest.approx(values[1], rel=1e-2) and values[1] != 0


def test_resumed_is_as_if_never_stopped():
    learner = moved_learner()
    straight, stopped, resumed = (ahead(memory=0.9) for _ in range(3))
    for looking in (straight, stopped):
        looking.gradients(learner)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    resumed.load_state_dict(copy.deepcopy(resumed.state_dict()))  # saved before it went on
    for _ in range(2):
        pair = straight.gradients(learner), resumed.gradients(learner)
        assert all(torch.equal(a["weight"], b["weight"]) for a, b in zip(*pair, strict=True))


def run(feedback, steps=60):
    """How far the learner ends from the law that feedback speaks of, and how reliable it was."""
    learner, draw = Regression(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=RATE, weight_decay=0.0)
    value_of = ValueEstimator(learner, Alignment("lookahead"), ESTIMATORS["double_backward"])
    designer = ExactDesigner(PairWeights(), Reliability(shrink=True))
    step = steered_step(
        learner, designer, feedback, value_of, optimizer, period=2, clip_norm=10.0, guard_window=8
    )
    history = [step(MicroBatches((pairs(draw),)), RATE) for _ in range(steps)]
    said = [record["reliability"] for record in history if "reliability" in record]
    return float((learner.model.weight.detach() - TRUTH).norm()), sum(said) / len(said)


def test_it_steers_and_is_not_fooled_by_noise():
    steered, sure = run(ahead(memory=0.5))
    noise, unsure = run(ahead(RandomDirection(Rows(), 0, fixed=False), memory=0.5))
    assert steered < 0.5 * noise
    assert unsure < 0.5 * sure
