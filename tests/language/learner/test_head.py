"""The head in chunks, held against logits, log-softmax and autograd over the whole of [N, V]."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.language.learner.slow_head import (
    WIDE,
    gradients,
    mass_of,
    next_batches,
    same,
    slow_logits,
    slow_loss,
)
from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.head_chunks import Chunks, Head
from vpretrain.language.learner.targets import SoftTargets, candidates, one_hot, soft_target_loss
from vpretrain.system.errors import UserError


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_value_candidates_and_gradients_equal_the_slow_definition(data):
    n, vocabulary = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 90))
    count = data.draw(st.integers(1, vocabulary) | st.just(vocabulary) | st.just(1))
    seed, rows = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([1, 2, 4, 100, None]))
    bias, weighted, gradient = (data.draw(st.booleans()) for _ in range(3))
    cap = data.draw(st.sampled_from([None, 2.0]))
    scale = data.draw(st.sampled_from([1.0, 0.3]))
    hidden, weight, bias, labels = next_batches(n, vocabulary, seed=seed, bias=bias)
    mass = mass_of(n, count, weighted, seed)
    made = HeadPass(hidden, Head(weight, bias, scale, cap), labels, rows=rows)
    ids = made.candidates(count, weighted=not gradient)
    logits = slow_logits(hidden, weight, bias, scale, cap)
    same([made.logits()], [logits])
    assert torch.equal(ids, candidates(logits, labels, count))
    same([made.log_p(ids)], [torch.log_softmax(logits, dim=1).gather(1, ids)])
    result, expected = (
        made.loss(SoftTargets(ids, mass)),
        soft_target_loss(logits, SoftTargets(ids, mass)),
    )
    same([result], [expected])
    leaves = (hidden, weight, bias, mass)
    same(gradients(3 * result, leaves), gradients(3 * expected, leaves))


def test_loss_equals_its_slow_loop():
    hidden, weight, bias, labels = next_batches(5, 11, bias=True)
    made = HeadPass(hidden, Head(weight, bias), labels, rows=2)
    ids, mass = made.candidates(4), mass_of(5, 4, weighted=True)
    result, expected = (
        made.loss(SoftTargets(ids, mass)),
        slow_loss(slow_logits(hidden, weight, bias), ids, mass),
    )
    same([result], [expected])
    same(gradients(result, (hidden, weight, bias)), gradients(expected, (hidden, weight, bias)))


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("hidden",), ("hidden", "weight")])
def test_what_does_not_train_gets_no_gradient_and_changes_no_other(frozen, gradient):
    hidden, weight, _, labels = next_batches(7, 30)
    leaves = {"hidden": hidden, "weight": weight, "mass": mass_of(7, 5, weighted=True)}
    for name in frozen:
        leaves[name].requires_grad_(False)
    made = HeadPass(hidden, Head(weight), labels, rows=3)
    targets = SoftTargets(made.candidates(5, weighted=not gradient), leaves["mass"])
    training = [leaf for name, leaf in leaves.items() if name not in frozen]
    result = gradients(made.loss(targets), training)
    same(result, gradients(soft_target_loss(hidden @ weight.t(), targets), training))


def test_loss_of_a_token_weighs_as_much_as_is_asked_upstream():
    """Mean over rows of the mean over tokens: weights that are known only when the
    gradient comes.
    """
    hidden, weight, _, labels = next_batches(7, 30)
    upstream = torch.tensor([1, 1, 1, 0.5, 0.5, 0, 3], dtype=WIDE)
    result = HeadPass(hidden, Head(weight), labels, rows=3).token_losses(
        one_hot(labels, dtype=WIDE)
    )
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    same([result], [expected])
    same(
        gradients(result @ upstream, (hidden, weight)),
        gradients(expected @ upstream, (hidden, weight)),
    )


def test_backward_again_gives_the_same_gradient():
    hidden, weight, _, labels = next_batches(7, 30)
    made = HeadPass(hidden, Head(weight), labels, rows=3)
    loss = made.loss(SoftTargets(made.candidates(5), mass_of(7, 5, weighted=False)))
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    first = [g.clone() for g in first]
    same(torch.autograd.grad(loss, (hidden, weight), retain_graph=True), first)
    other = made.loss(one_hot(labels, dtype=WIDE))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels)
    same(gradients(other, (hidden, weight)), gradients(expected, (hidden, weight)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_candidates_without_mass_leave_the_plain_step_bit_for_bit(dtype):
    hidden, weight, _, labels = next_batches(20, 300, dtype=dtype)
    plain = HeadPass(hidden, Head(weight), labels, rows=6)
    steered = HeadPass(hidden, Head(weight), labels, rows=6)
    ids = steered.candidates(16)
    one = plain.loss(one_hot(labels))
    other = steered.loss(one_hot(labels, ids))
    assert torch.equal(one, other)
    for a, b in zip(
        gradients(one, (hidden, weight)), gradients(other, (hidden, weight)), strict=True
    ):
        assert torch.equal(a, b)


def test_rows_that_sum_to_one_but_for_rounding_carry_no_weights(monkeypatch):
    """Soft targets in float32 sum to 1 only nearly; to take that for weights would cost two
    products more.
    """
    hidden, weight, _, labels = next_batches(40, 200, dtype=torch.float32)
    mass = mass_of(40, 64, weighted=False, dtype=torch.float32).detach()
    assert (mass.sum(dim=1) != 1).any()
    made = HeadPass(hidden, Head(weight), labels)
    targets = SoftTargets(made.candidates(64), mass)
    loss = made.loss(targets)
    monkeypatch.setattr(Chunks, "run", None)
    expected = gradients(soft_target_loss(hidden @ weight.t(), targets), (hidden, weight))
    same(gradients(loss, (hidden, weight)), expected, 1e-5)


def test_impossible_tokens_of_a_padded_vocabulary():
    hidden, weight, _, labels = next_batches(6, 20)
    bias = torch.zeros(20, dtype=WIDE)
    bias[15:] = -torch.inf
    labels = labels % 15
    made = HeadPass(hidden, Head(weight, bias), labels, rows=4)
    ids = made.candidates(20)
    assert (ids.sort(dim=1).values == torch.arange(20)).all() and (ids[:, 15:] >= 15).all()
    mass = torch.zeros(6, 20, dtype=WIDE)
    mass[:, :15] = mass_of(6, 15, weighted=False).detach()
    result = made.loss(SoftTargets(ids, mass))
    expected = soft_target_loss(hidden @ weight[:15].t(), SoftTargets(ids[:, :15], mass[:, :15]))
    same([result], [expected])
    same(gradients(result, (hidden, weight)), gradients(expected, (hidden, weight)))
    assert torch.isinf(made.log_p(ids)[:, 15:]).all()


def test_an_impossible_candidate_costs_nothing_and_has_no_value_on_any_path():
    hidden, weight, _, labels = next_batches(6, 20)
    bias = torch.zeros(20, dtype=WIDE)
    bias[15:] = -torch.inf
    labels = labels % 15
    ids = torch.stack([labels, (labels + 1) % 15, torch.full_like(labels, 17)], dim=1)
    made = HeadPass(hidden, Head(weight, bias), labels, rows=4)
    result = []
    for loss in (
        lambda targets: soft_target_loss(hidden @ weight.t() + bias, targets),
        made.loss,
        lambda targets: made.tangent_loss(hidden.detach(), targets),
    ):
        mass = torch.tensor([0.75, 0.25, 0.0], dtype=WIDE).expand(6, 3).clone().requires_grad_()
        value = loss(SoftTargets(ids, mass))
        result.append([value, torch.autograd.grad(value, mass, retain_graph=True)[0]])
        assert result[-1][0].isfinite() and (result[-1][1][:, 2] == 0).all()
    same(result[0], result[1])
    same(result[0], result[2])
    asked = SoftTargets(ids, torch.tensor([0.5, 0.0, 0.5], dtype=WIDE).expand(6, 3))
    assert made.loss(asked) == soft_target_loss(hidden @ weight.t() + bias, asked) == torch.inf


def test_all_equal_logits():
    hidden, weight, _, labels = next_batches(4, 500)
    made = HeadPass(hidden, Head(torch.zeros_like(weight)), labels)
    ids = made.candidates(9)
    assert torch.equal(ids[:, 0], labels) and all(len(set(row)) == 9 for row in ids.tolist())
    same(
        [made.log_p(ids)],
        [torch.full((4, 9), -torch.tensor(500, dtype=WIDE).log().item(), dtype=WIDE)],
    )


def test_a_learner_that_is_sure_keeps_its_small_gradient():
    """p = 1 - 1e-43 and logits of 1e4: nothing overflows and nothing cancels to noise."""
    hidden = torch.tensor([[100.0, 0.0], [-1e4, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    result = HeadPass(hidden, Head(weight), labels).loss(one_hot(labels))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels)
    same([result], [expected], 1e-6)
    same(gradients(result, (hidden, weight)), gradients(expected, (hidden, weight)), 1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_narrow_is_as_near_to_the_truth_as_the_plain_path(weighted):
    hidden, weight, _, labels = next_batches(64, 700, width=48, dtype=torch.bfloat16)
    with torch.no_grad():
        weight /= 4  # from sure of it to flat
        hidden[::2] += 2 * weight[labels[::2]] * 16
    made = HeadPass(hidden, Head(weight), labels, rows=20)
    ids = made.candidates(8, weighted=weighted)
    targets = SoftTargets(ids, mass_of(64, 8, weighted, dtype=torch.float32).detach())
    truth_leaves = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    true_loss = soft_target_loss(
        truth_leaves[0] @ truth_leaves[1].t(), SoftTargets(ids, targets.mass.double())
    )
    truth = [true_loss, *gradients(true_loss, truth_leaves)]
    result = made.loss(targets)
    plain = soft_target_loss(hidden @ weight.t(), targets)
    ours, theirs = ([loss, *gradients(loss, (hidden, weight))] for loss in (result, plain))
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        error, accepted = ((t.double() - true).norm() / true.norm() for t in (mine, other))
        assert error <= 1.1 * accepted + 1e-6, (float(error), float(accepted))


def test_autocast_multiplies_narrow_and_returns_the_weights_dtype():
    hidden, weight, _, labels = next_batches(16, 100, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = HeadPass(hidden, Head(weight), labels)
        loss = made.loss(
            SoftTargets(made.candidates(5), mass_of(16, 5, weighted=False, dtype=torch.float32))
        )
        expected = soft_target_loss(torch.nn.functional.linear(hidden, weight), one_hot(labels))
    assert made.chunks.dtype == torch.bfloat16 and expected.dtype == loss.dtype == torch.float32
    assert [g.dtype for g in gradients(loss, (hidden, weight))] == [torch.float32] * 2


def test_gradient_of_the_weight_is_not_copied():
    """A copy of [V, D] would be the largest tensor of the step."""
    hidden, weight, _, labels = next_batches(5, 50)
    made = HeadPass(hidden, Head(weight), labels)
    loss = made.loss(one_hot(labels, dtype=WIDE))
    place = made._pass.dense.weight.data_ptr()
    loss.backward()
    assert weight.grad.data_ptr() == place


def test_weights_changed_between_loss_and_gradient_are_refused():
    hidden, weight, _, labels = next_batches(5, 50)
    loss = HeadPass(hidden, Head(weight), labels).loss(one_hot(labels, dtype=WIDE))
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("learner", "designer"), [(torch.float64, torch.float32), (torch.float32, torch.float64)]
)
def test_mass_of_another_dtype_than_the_learner(learner, designer):
    hidden, weight, _, labels = next_batches(6, 40, dtype=learner)
    made = HeadPass(hidden, Head(weight), labels, rows=4)
    targets = SoftTargets(
        made.candidates(5), mass_of(6, 5, weighted=True, dtype=designer).detach().requires_grad_()
    )
    result, expected = made.loss(targets), soft_target_loss(hidden @ weight.t(), targets)
    leaves = (hidden, weight, targets.mass)
    same([result, *gradients(result, leaves)], [expected, *gradients(expected, leaves)], 1e-6)


def test_what_is_refused():
    hidden, weight, _, labels = next_batches(5, 10)
    with pytest.raises(UserError, match="no token of this batch"):
        HeadPass(hidden[:0], Head(weight), labels[:0]).loss(one_hot(labels[:0]))
    made = HeadPass(hidden, Head(weight), labels)
    with pytest.raises(UserError, match="1 to 10"):
        made.candidates(11)
    twice = torch.stack([labels, labels], dim=1)
    other = ((labels + 1) % 10)[:, None]
    for ids in (twice, other):
        with pytest.raises(UserError, match="true one first"):
            made.loss(SoftTargets(ids, torch.ones(ids.shape)))
    with pytest.raises(UserError, match="plain linear layer"):
        Head.of(torch.nn.Sequential(torch.nn.Linear(6, 10)))


def test_candidates_from_elsewhere():
    hidden, weight, _, labels = next_batches(6, 40)
    cap = Head(weight, torch.linspace(-1, 1, 40, dtype=WIDE), scale=0.5, cap=3.0)
    made = HeadPass(hidden, cap, labels, rows=4)
    ids = torch.stack([labels, (labels + 7) % 40, (labels + 1) % 40], dim=1)
    targets = SoftTargets(ids, mass_of(6, 3, weighted=False))
    expected = soft_target_loss(slow_logits(hidden, weight, cap.bias, 0.5, 3.0), targets)
    result = made.loss(targets)
    same([result], [expected])
    leaves = (hidden, weight, targets.mass)
    same(gradients(result, leaves), gradients(expected, leaves))


@pytest.mark.parametrize(
    ("trains", "gradient", "weighted", "width", "products"),
    [
        (True, True, False, 8, 3),
        (True, False, True, 8, 4 - 7 / 20),  # the softmax of one chunk of 7 is kept
        (True, False, True, 20, 3),  # of all 20 positions
        (False, True, True, 8, 2),
        (True, True, True, 8, 5),
    ],
)
def test_products_are_as_many_as_the_table_says(trains, gradient, weighted, width, products):
    hidden, weight, _, labels = next_batches(20, 100, width=width)
    weight.requires_grad_(trains)
    with FlopCounterMode(display=False) as counter:
        made = HeadPass(hidden, Head(weight), labels, rows=7)
        ids = made.candidates(5, weighted=not gradient)
        made.loss(SoftTargets(ids, mass_of(20, 5, weighted).detach())).backward()
    assert counter.get_total_flops() == products * 2 * 20 * 100 * width


def test_what_is_kept_for_weights_that_come_later_is_gone_before_the_blocks_gradient():
    """No more than the gradient to the weight takes, and not for a gradient that nobody wants."""
    hidden, weight, _, labels = next_batches(40, 100, width=16)
    made, held = HeadPass(hidden, Head(weight), labels, rows=5), []
    hidden.register_hook(lambda gradient: held.append(sum(map(len, made._pass.slopes.parts))))
    ids = made.candidates(5, weighted=True)
    assert sum(map(len, made._pass.slopes.parts)) == 15
    made.loss(SoftTargets(ids, mass_of(40, 5, weighted=True).detach())).backward()
    assert held == [0]
    for frozen in (hidden, weight):
        frozen.requires_grad_(False)
        made = HeadPass(hidden, Head(weight), labels, rows=5)
        made.candidates(5, weighted=True)
        assert made._pass.slopes is None


@pytest.mark.parametrize("positions", [10, 17, 22])
def test_a_short_last_chunk_that_would_fit_is_not_taken_for_an_earlier_one(positions):
    hidden, weight, _, labels = next_batches(positions, 40, width=6)
    made = HeadPass(hidden, Head(weight), labels, rows=4)
    ids = made.candidates(3, weighted=True)
    targets = SoftTargets(ids, mass_of(positions, 3, weighted=True).detach())
    expected = gradients(
        slow_loss(slow_logits(hidden, weight, None), *vars(targets).values()), (weight,)
    )
    same(gradients(made.loss(targets), (weight,)), expected)


def test_weights_that_are_known_cost_no_more_than_none_and_values_cost_nothing():
    hidden, weight, _, labels = next_batches(20, 100, width=8)
    weights = SoftTargets(labels[:, None], mass_of(20, 1, weighted=True).detach())
    with FlopCounterMode(display=False) as counter:
        HeadPass(hidden, Head(weight), labels, rows=7).loss(weights).backward()
    assert counter.get_total_flops() == 3 * 2 * 20 * 100 * 8
    made = HeadPass(hidden, Head(weight), labels, rows=7)
    ids = made.candidates(5)
    states, targets = hidden.detach() + 0.1, SoftTargets(ids, mass_of(20, 5, weighted=False))
    with FlopCounterMode(display=False) as counter:
        made.tangent_loss(states, targets)
    assert counter.get_total_flops() < 20 * 100 * 8  # less than a product with the vocabulary


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("order", ["before", "after", "without gradients"])
def test_the_tangent_has_the_derivatives_of_the_loss(cap, order):
    hidden, weight, bias, labels = next_batches(7, 30, bias=True)
    with torch.set_grad_enabled(order != "without gradients"):
        made = HeadPass(hidden, Head(weight, bias, 1.0, cap), labels, rows=3)
    if order == "after":
        made.loss(one_hot(labels, dtype=WIDE)).backward()
    ids = candidates(slow_logits(hidden, weight, bias, 1.0, cap), labels, 5)
    mass = mass_of(7, 5, weighted=True)
    states = hidden.detach().clone().requires_grad_()
    result = made.tangent_loss(states, SoftTargets(ids, mass))
    expected = slow_loss(slow_logits(states, weight, bias, 1.0, cap), ids, mass)
    same([result], [expected])
    ours, theirs = (
        torch.autograd.grad(loss, (states, mass), create_graph=True) for loss in (result, expected)
    )
    same(ours, theirs)
    along = torch.randn(7, 6, generator=torch.Generator().manual_seed(3), dtype=WIDE)
    mixed = [
        torch.autograd.grad((slope * along).sum(), mass, retain_graph=True)
        for (slope, _) in (ours, theirs)
    ]
    same(*mixed)  # d/d mass of the derivative along a direction: the token values


def test_losses_under_one_weighting_then_another():
    hidden, weight, _, labels = next_batches(7, 30)
    made = HeadPass(hidden, Head(weight), labels, rows=3)
    for seed in (1, 2):
        targets = SoftTargets(labels[:, None], mass_of(7, 1, weighted=True, seed=seed).detach())
        result = gradients(made.loss(targets), (hidden, weight))
        same(result, gradients(soft_target_loss(hidden @ weight.t(), targets), (hidden, weight)))
    first, second = (mass_of(7, 1, weighted=True, seed=seed).detach() for seed in (1, 2))
    made = HeadPass(hidden, Head(weight), labels, rows=3)
    made.loss(SoftTargets(labels[:, None], first))  # and never sent back
    result = gradients(made.loss(SoftTargets(labels[:, None], second)), (hidden, weight))
    expected = soft_target_loss(hidden @ weight.t(), SoftTargets(labels[:, None], second))
    same(result, gradients(expected, (hidden, weight)))
