"""Running means and covariances."""

import pytest
import torch

from tests.reliability.processes import together
from vpretrain.method.moments import Moments
from vpretrain.system import distributed


def drawn(seed, size):
    return torch.randn(2, size, generator=torch.Generator().manual_seed(seed)) * 3 + 100


def test_batches_count_by_their_size_and_age():
    """The slow definition: every entry with the factor of its batch."""
    moments, batches = Moments(0.5), [drawn(0, 7), drawn(1, 1), drawn(2, 4)]
    for batch in batches:
        moments.update(*batch)
    values = torch.cat(batches, dim=1).double()
    factor = torch.tensor([0.25] * 7 + [0.5] + [1.0] * 4, dtype=torch.float64)
    mean = (factor * values).sum(dim=1) / factor.sum()
    centred = values - mean[:, None]
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.scatter, (factor * centred) @ centred.t())
    torch.testing.assert_close(moments.std, (moments.scatter.diagonal() / factor.sum()).sqrt())
    assert float(moments.count) == pytest.approx(float(factor.sum()))
    product, one, other = moments.scatter[0, 1], *moments.scatter.diagonal()
    assert moments.correlation == pytest.approx(float(product / (one * other).sqrt()))


def test_without_memory_a_batch_stands_alone():
    moments, alone = Moments(0.0), Moments(0.0)
    moments.update(*drawn(0, 7))
    for each in (moments, alone):
        each.update(*drawn(1, 4))
    assert torch.equal(moments.mean, alone.mean) and torch.equal(moments.scatter, alone.scatter)


def test_figures_without_a_spread_have_none_however_often_they_come():
    moments, values = Moments(), torch.full((3,), 0.1)
    for _ in range(5):
        moments.update(values, torch.arange(3.0))
    assert moments.std[0] == 0 and moments.correlation == 0
    assert torch.equal(moments.standardised(values), torch.zeros(3))


def test_values_far_from_zero_keep_their_spread():
    moments = Moments()
    for seed in range(4):
        moments.update(drawn(seed, 500)[0].double() + 1e9)
    assert float(moments.std[0]) == pytest.approx(3, rel=0.05)


def of_two(batches):
    """Moments of this process's part of every batch; the second has one entry of the first."""
    moments = Moments()
    for batch in batches:
        parts = (batch,) if distributed.world() == 1 else (batch[:, 1:], batch[:, :1])
        moments.update(*parts[distributed.rank()])
    return moments.mean, moments.scatter


def test_processes_count_as_one():
    batches = [drawn(0, 7), drawn(1, 1), drawn(2, 4)]
    first, second = together(2, of_two, batches)
    for one, two, alone in zip(first, second, of_two(batches), strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, alone)


def test_they_come_back_with_a_checkpoint():
    moments, again = Moments(), Moments()
    moments.update(*drawn(0, 7))
    again.load_state_dict(moments.state_dict())
    for each in (moments, again):
        each.update(*drawn(1, 4))
    assert torch.equal(moments.mean, again.mean) and torch.equal(moments.scatter, again.scatter)
