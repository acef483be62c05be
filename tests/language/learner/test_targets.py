"""Candidates, soft targets and their loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpretrain.language.learner.targets import (
    SoftTargets,
    candidate_log_probabilities,
    candidates,
    mix,
    one_hot,
    soft_target_loss,
)
from vpretrain.method.rules import anchored, standardised


def random_logits(n, vocabulary, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, vocabulary, generator=generator, dtype=dtype) * 3
    return logits, torch.randint(vocabulary, (n,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 30), st.integers(0, 1000), st.data())
def test_candidates_are_distinct_with_the_truth_first(n, vocabulary, seed, data):
    count = data.draw(st.integers(1, vocabulary))
    logits, labels = random_logits(n, vocabulary, seed)
    ids = candidates(logits, labels, count)
    assert ids.shape == (n, count)
    assert (ids[:, 0] == labels).all()
    assert all(len(set(row)) == count for row in ids.tolist())
    for row, label, scores in zip(ids.tolist(), labels.tolist(), logits, strict=True):
        others = [v for v in scores.argsort(descending=True).tolist() if v != label][: count - 1]
        assert set(row[1:]) == set(others)


def test_candidates_survive_padded_vocabulary_and_equal_logits():
    logits = torch.full((2, 6), -torch.inf)
    logits[:, :2] = 0.0
    labels = torch.tensor([1, 5])  # 5 is a padded entry itself
    ids = candidates(logits, labels, 6)
    assert ids[:, 0].tolist() == [1, 5]
    assert all(sorted(row) == list(range(6)) for row in ids.tolist())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 5), st.floats(0, 1))
def test_targets_sum_to_one_within_the_gate(seed, temperature, gate_max):
    logits, labels = random_logits(9, 20, seed)
    ids = candidates(logits, labels, 7)
    log_p = candidate_log_probabilities(logits, ids)
    values = standardised(
        torch.randn(9, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    proposal, gate = anchored(values, log_p, temperature=temperature, clip=2.0, gate_max=gate_max)
    targets = mix(ids, proposal, gate)
    torch.testing.assert_close(targets.mass.sum(dim=1), torch.ones(9, dtype=torch.float64))
    assert (targets.mass >= 0).all() and (gate >= 0).all() and (gate <= gate_max).all()


def test_loss_equals_its_slow_loop_in_value_and_gradient():
    logits, labels = random_logits(5, 11)
    ids = candidates(logits, labels, 4)
    mass = torch.rand(5, 4, dtype=torch.float64)
    fast_logits, slow_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    fast_mass, slow_mass = mass.clone().requires_grad_(), mass.clone().requires_grad_()
    fast = soft_target_loss(fast_logits, SoftTargets(ids, fast_mass))
    slow = torch.zeros((), dtype=torch.float64)
    for n in range(5):
        for k in range(4):
            slow = slow - slow_mass[n, k] * torch.log_softmax(slow_logits[n], dim=0)[ids[n, k]] / 5
    fast.backward()
    slow.backward()
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast_logits.grad, slow_logits.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast_mass.grad, slow_mass.grad, rtol=1e-12, atol=1e-12)


def test_one_hot_loss_is_cross_entropy():
    logits, labels = random_logits(5, 11, dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(soft_target_loss(logits, one_hot(labels)), expected)


def test_a_closed_gate_is_one_hot_bit_for_bit():
    logits, labels = random_logits(300, 50, dtype=torch.float32)
    ids = candidates(logits, labels, 8)
    plain, closed = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a = soft_target_loss(plain, one_hot(labels))
    b = soft_target_loss(closed, mix(ids, torch.full((300, 8), 1 / 8), torch.zeros(300)))
    a.backward()
    b.backward()
    assert torch.equal(a, b) and torch.equal(plain.grad, closed.grad)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_the_cold_unclipped_rule_is_the_best_under_its_gate(seed):
    """method.md section 2: all of alpha_max on the most valuable candidate bounds every target on
    the same candidates.
    """
    generator = torch.Generator().manual_seed(seed)
    logits, labels = random_logits(6, 15, seed)
    ids = candidates(logits, labels, 5)
    log_p = candidate_log_probabilities(logits, ids)
    values = standardised(torch.randn(6, 5, generator=generator, dtype=torch.float64))
    gate_max = 0.4
    proposal, gate = anchored(
        values, log_p, temperature=1e-12, clip=float("inf"), gate_max=gate_max
    )
    best = (mix(ids, proposal, gate).mass * values).sum()
    for _ in range(20):
        r = torch.softmax(4 * torch.randn(6, 5, generator=generator, dtype=torch.float64), dim=1)
        some_gate = gate_max * torch.rand(6, generator=generator, dtype=torch.float64)
        assert best >= (mix(ids, r, some_gate).mass * values).sum() - 1e-9


def test_unreliable_values_close_the_gate():
    logits, labels = random_logits(6, 15)
    ids = candidates(logits, labels, 5)
    log_p = candidate_log_probabilities(logits, ids)
    _, gate = anchored(
        torch.zeros(6, 5, dtype=torch.float64), log_p, temperature=1.0, clip=2.0, gate_max=0.5
    )
    assert gate.abs().max() == 0


def test_the_rule_pulls_towards_value_and_leaves_ruled_out_tokens_alone():
    log_p = torch.log(torch.tensor([[0.55, 0.449, 0.001]]))
    values = torch.tensor([[-1.0, 1.0, 1.0]])
    proposal, gate = anchored(values, log_p, temperature=1.0, clip=2.0, gate_max=0.5)
    assert proposal[0, 1] > 0.8 and proposal[0, 2] < 0.01 and gate[0] == pytest.approx(0.5)
