"""The paper's designer: what its network sees, and that it climbs the raw value."""

import pytest
import torch

from tests.language.conftest import tiny_batch, tiny_learner
from vpretrain.language.data.batch import laid_out
from vpretrain.language.data.rows import Document
from vpretrain.language.steering.arms import Site
from vpretrain.language.steering.ascent import HiddenAscentArm
from vpretrain.language.steering.topk_augmentor import AscentArm, TopKAugmentor
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Estimate

VOCABULARY, K = 40, 6


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = TopKAugmentor(VOCABULARY, hidden=16, layers=2, heads=2)
    # wider weights than at the start, so that whatever is seen shows
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def packed(*documents):
    """One row of several documents, and the positions before the predicted tokens."""
    made = [Document(ids, [False] + [True] * (len(ids) - 1), "test:1", "s") for ids in documents]
    width = sum(map(len, documents)) + 2
    batch = laid_out([made], width=width, pad_id=0, padding_apart=True)
    row, at = batch.predicted.nonzero(as_tuple=True)
    return batch, (row, at - 1)


def candidates(batch, others):
    """The true token first, then tokens that are none of the row's."""
    row, at = batch.predicted.nonzero(as_tuple=True)
    truth = batch.input_ids[row, at][:, None]
    return torch.cat([truth, torch.tensor(others).expand(len(truth), -1)], dim=1)


OTHERS = [30, 31, 32, 33, 34]


def test_the_true_next_token_moves_the_gate_and_the_other_candidates(network):
    batch, where = packed([1, 2, 3, 4])
    ids = candidates(batch, OTHERS)
    swapped = ids.clone()
    swapped[1, 0] = 20  # another truth after the same context
    scores, gate = network(batch, where, ids)
    others, other_gate = network(batch, where, swapped)
    assert (gate - other_gate)[1].abs() > 1e-4
    assert (scores - others)[1, 1:].abs().min() > 1e-4
    kept = torch.tensor([0, 2])
    assert torch.equal(gate[kept], other_gate[kept]) and torch.equal(scores[kept], others[kept])


def test_a_later_token_does_not_change_an_earlier_position(network):
    one, where = packed([1, 2, 3, 4, 5])
    other, _ = packed([1, 2, 3, 4, 9])
    scores, gate = network(one, where, candidates(one, OTHERS))
    others, other_gate = network(other, where, candidates(other, OTHERS))
    torch.testing.assert_close(scores[:3], others[:3])
    torch.testing.assert_close(gate[:3], other_gate[:3])
    assert (scores[3] - others[3]).abs().max() > 1e-4  # it is the next token there
    earlier, _ = packed([8, 2, 3, 4, 5])
    assert (network(earlier, where, candidates(earlier, OTHERS))[1] - gate).abs().min() > 1e-5


def test_documents_of_a_row_do_not_see_each_other(network):
    both, where = packed([1, 2, 3], [4, 5, 6, 7])
    changed, _ = packed([9, 8, 7], [4, 5, 6, 7])
    alone, there = packed([4, 5, 6, 7])
    scores, gate = network(both, where, candidates(both, OTHERS))
    for batch, place, first in ((changed, where, 2), (alone, there, 0)):
        others, other_gate = network(batch, place, candidates(batch, OTHERS))
        torch.testing.assert_close(scores[2:], others[first:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gate[2:], other_gate[first:], rtol=1e-4, atol=1e-5)


class Fixed:
    def __init__(self, values):
        self.values = values

    def each(self, context, task):
        return [Estimate(torch.zeros(()), (self.values,))]


def designer(learner, unit="raw", **keys):
    arm = AscentArm(candidates=K, hidden=16, layers=1, heads=2, **keys)
    return arm.build(Site(learner, 0, Reliability(shrink=False, unit=unit)))


def test_an_update_follows_the_sum_of_value_times_change_of_target():
    """``dV/d phi = sum_t,v s_t(v) dq_t(v)/d phi``: with raw values the loss is -V itself."""
    learner = tiny_learner()
    context = learner.forward(tiny_batch())
    values = 1e-3 * torch.randn(len(context.labels), K, generator=torch.Generator().manual_seed(1))
    for unit in ("raw", "standardised"):
        one = designer(learner, unit, learning_rate=0.0)
        seen = {}
        one.descend = lambda loss, seen=seen, one=one: seen.update(
            zip(
                (name for name, _ in one.network.named_parameters()),
                torch.autograd.grad(loss, list(one.network.parameters())),
                strict=True,
            )
        )
        one.learn(context, Fixed(values))
        task = one.propose(context)
        expected = torch.autograd.grad((task.mass * values).sum(), list(one.network.parameters()))
        if unit == "raw":
            for gradient, wanted in zip(seen.values(), expected, strict=True):
                torch.testing.assert_close(gradient, -wanted, rtol=1e-4, atol=1e-9)
        else:
            ratio = -seen["gate.bias"] / expected[-1]
            torch.testing.assert_close(ratio, 1 / (values.std(correction=0) * len(values))[None])


def test_it_climbs_the_value_and_leaves_the_learner_alone():
    learner = tiny_learner()
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    context = learner.forward(tiny_batch(rows=6))
    values = torch.randn(len(context.labels), K, generator=torch.Generator().manual_seed(3))
    one, state = designer(learner, learning_rate=1e-2), torch.get_rng_state()
    gains = [one.learn(context, Fixed(values)).metrics["gain"] for _ in range(60)]
    assert gains[-1] > 3 * abs(gains[0]) and gains[-1] > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in learner.model.named_parameters())
    again = designer(learner, learning_rate=1e-2)
    again.load_state_dict(one.state_dict())
    assert torch.equal(again.make_task(context, None).mass, one.make_task(context, None).mass)


def test_its_weights_are_float32_under_a_narrow_learner():
    learner = tiny_learner(dtype=torch.bfloat16)
    one = designer(learner)
    assert {p.dtype for p in one.network.parameters()} == {torch.float32}
    task = one.make_task(learner.forward(tiny_batch()), None)
    assert task.mass.dtype == torch.float32
    torch.testing.assert_close(task.mass.sum(dim=1), torch.ones(len(task.mass)))


@pytest.mark.parametrize("arm", [AscentArm, HiddenAscentArm])
def test_targets_begin_even_or_at_the_learners_own_probabilities(arm):
    """A network whose scores are zero: r is what the recipe's start says."""
    learner = tiny_learner()
    context = learner.forward(tiny_batch())
    for start in ("uniform", "learner"):
        section = arm(candidates=K, gate_max=1.0, hidden=16, layers=1, heads=2, start=start)
        designer = section.build(Site(learner, 0, Reliability(shrink=False)))
        designer.score = lambda among: (
            torch.zeros_like(among.log_p),
            among.log_p.new_ones(len(among.log_p)),
        )
        task = designer.make_task(context, None)
        log_p = context.predictions.log_p(task.ids)
        expected = torch.softmax(log_p, 1) if start == "learner" else torch.full_like(log_p, 1 / K)
        assert torch.allclose(task.mass, expected, atol=1e-6)
