"""How far halves of the feedback agree, and what values are shrunk by."""

import pytest
import torch

from vpretrain.method.reliability import Reliability, correlation


def test_correlation_by_hand():
    a = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(a, 5 + 2 * a) == pytest.approx(1.0)
    assert correlation(a, -a) == pytest.approx(-1.0)
    assert correlation(a, torch.tensor([1.0, 0.0, 1.0])) == pytest.approx(0.0)
    assert correlation(a, torch.ones(3)) == 0.0  # what does not vary agrees with nothing


def test_halves_that_agree_by_r_give_2r_over_1_plus_r():
    reliability = Reliability(shrink=True, memory=0.0)
    one, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    reliability.update([one, other])
    assert reliability.agreement == pytest.approx(0.5)
    assert reliability.factor == pytest.approx(2 * 0.5 / 1.5)
    as_they_are = Reliability(shrink=False)
    as_they_are.update([one, other])
    assert as_they_are.factor == 1.0


@pytest.mark.parametrize(("size", "least"), [(1, 0.6), (4, 0.85), (80, 0.97)])
def test_batches_of_few_documents_agree_as_one_large_batch_does(size, least):
    """Tokens of a document have its value in common, and all else is noise: within one document
    halves agree on nothing. One document at a time tells too little rather than too much.
    """
    generator = torch.Generator().manual_seed(0)
    documents = torch.randn(400, 1, generator=generator)
    halves = [documents + torch.randn(400, 20, generator=generator) for _ in range(2)]
    reliability, own = Reliability(shrink=True, memory=0.999), []
    for pair in zip(*(half.split(size) for half in halves), strict=True):
        reliability.update(pair)
        own.append(correlation(*pair))
    assert correlation(*halves) == pytest.approx(0.5, abs=0.03)
    assert least < reliability.agreement / correlation(*halves) < 1.05
    assert size > 1 or abs(sum(own) / len(own)) < 0.05


@pytest.mark.parametrize("scale", [1e4, 1e-4, 0.0])
def test_meta_steps_count_alike_whatever_the_scale_of_their_values(scale):
    reliability, values = Reliability(shrink=True), torch.arange(4.0)
    for size, sign in ((scale, -1), (1.0, 1), (1.0, 1)):
        reliability.update([size * values, sign * size * values])
    assert reliability.agreement > 0


def test_contradiction_and_a_single_batch_are_worth_nothing():
    reliability, values = Reliability(shrink=True, memory=0.0), torch.arange(3.0)
    reliability.update([values])
    assert reliability.agreement is None and reliability.factor == 0.0
    reliability.update([values, -values])
    assert reliability.agreement == pytest.approx(-1.0) and reliability.factor == 0.0


@pytest.mark.parametrize("alike", [torch.tensor([[50.0]]), torch.full((4, 1), -2.0)])
def test_values_without_a_spread_steer_nothing(alike):
    """A batch with one predicted token, for example."""
    shrunk = Reliability(shrink=False).shrunk(alike)
    assert torch.equal(shrunk, torch.zeros_like(alike))


def test_the_past_counts_by_the_memory():
    reliability, values = Reliability(shrink=True, memory=0.75), torch.arange(3.0) - 1
    reliability.update([values, values])
    reliability.update([values, -values])
    # Sums of squares and of products: 0.75 + 1 and 0.75 - 1.
    assert reliability.agreement == pytest.approx(-0.25 / 1.75)


def test_batches_are_split_in_two_by_turns():
    reliability, values = Reliability(shrink=True, memory=0.0), torch.arange(3.0)
    # Even ones average to the values, odd ones to twice them: they agree.
    reliability.update([values, 2 * values, values, 2 * values])
    assert reliability.agreement == pytest.approx(1.0)


def test_values_shrink_in_standard_deviations():
    shrunk = Reliability(shrink=False).shrunk(torch.tensor([1.0, -3.0, 2.0]))
    assert shrunk.std(unbiased=False) == pytest.approx(1.0)


def test_reliability_is_spearman_brown():
    reliability = Reliability(shrink=True)
    generator = torch.Generator().manual_seed(0)
    signal, a, b = (torch.randn(50_000, 1, generator=generator) for _ in range(3))
    reliability.update([signal + a, signal + b])
    assert reliability.agreement == pytest.approx(0.5, abs=0.02)
    assert reliability.factor == pytest.approx(
        2 / 3, abs=0.02
    )  # var(signal) / var(mean of the halves)


def test_correlation():
    a = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert correlation(a, 3 * a + 2) == pytest.approx(1)
    assert correlation(a, torch.ones(4, 5)) == 0
