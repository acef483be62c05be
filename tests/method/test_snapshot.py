"""Whatever is tried on a learner that is kept is undone, bit for bit."""

import copy
import random

import numpy
import pytest
import torch
from torch import nn

from vpretrain.method.simple import WholeLearner
from vpretrain.method.snapshot import Snapshot


@pytest.fixture
def kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    learner = WholeLearner(model, lambda call, x, task: call(x).square().mean(), ["3.*"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    learn(learner, optimizer)
    return learner, optimizer


def learn(learner, optimizer):
    learner.loss(torch.randn(8, 3), None).backward()
    optimizer.step()
    optimizer.zero_grad()


def state(learner, optimizer):
    generators = (torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist())
    return copy.deepcopy((learner.model.state_dict(), optimizer.state_dict())), generators


def assert_same(before, after):
    (model, optimizer), (torch_state, *others) = before
    (model_after, optimizer_after), (torch_state_after, *others_after) = after
    assert all(torch.equal(model[name], model_after[name]) for name in model)
    assert optimizer["param_groups"] == optimizer_after["param_groups"]
    for number, moments in optimizer["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, optimizer_after["state"][number][name])
    assert torch.equal(torch_state, torch_state_after) and others == others_after


def test_a_step_is_undone(kept):
    learner, optimizer = kept
    before, snapshot = state(*kept), Snapshot(learner, optimizer)
    with snapshot():
        optimizer.param_groups[0]["lr"] = 7.0
        learner.model.eval()
        learn(learner, optimizer)
        random.random(), numpy.random.random()
    assert_same(before, state(*kept))
    assert learner.model.training and all(p.grad is None for p in learner.model.parameters())


def test_a_step_is_undone_when_the_block_fails(kept):
    before, snapshot = state(*kept), Snapshot(*kept)
    with pytest.raises(RuntimeError, match="fails"), snapshot():
        learn(*kept)
        raise RuntimeError("fails")
    assert_same(before, state(*kept))


def test_the_same_block_twice_does_the_same(kept):
    snapshot, weights = Snapshot(*kept), []
    for _ in range(2):
        with snapshot():
            learn(*kept)
            weights.append(kept[0].model[3].weight.detach().clone())
    assert torch.equal(*weights)


class Followed:
    """A learner with something beside its model that follows it."""

    def __init__(self, model):
        self.model, self.teacher = model, torch.zeros(3)

    def state_dict(self):
        return {"teacher": self.teacher}

    def load_state_dict(self, state):
        self.teacher.copy_(state["teacher"])


def test_a_snapshot_keeps_buffers_modes_and_generators_and_what_follows_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    learner = Followed(model)
    unchanged = Snapshot(learner, optimizer)
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate()
    with pytest.raises(ZeroDivisionError), unchanged():
        model.eval()
        model.train()
        model[2].eval()
        model(torch.randn(8, 4)).sum().backward()
        optimizer.param_groups[0]["lr"] = 1.0
        optimizer.step()
        learner.teacher += 1
        random.random()
        assert not torch.equal(saved["1.running_mean"], model[1].running_mean)
        raise ZeroDivisionError
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generators[0]) and random.getstate() == generators[1]
    assert (
        model[2].training and optimizer.param_groups[0]["lr"] == 0.0 and not learner.teacher.any()
    )
    assert all(state["step"] == 1 for state in optimizer.state.values())
