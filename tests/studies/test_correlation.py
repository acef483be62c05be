"""Pearson's r and the slope by hand, and the interval of r against the bootstrap."""

import math

import numpy
import pytest

from vpretrain.studies.correlation import pearson, slope


def test_pearson_by_hand():
    assert pearson([1, 2, 3, 4], [2, 4, 6, 8])[0] == pytest.approx(1)
    assert pearson([1, 2, 3, 4], [1, 1, 1, 1]) == (None, None)
    assert pearson([0.1] * 5, [1, 2, 3, 4, 5]) == (None, None)
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0]
    r, (low, high) = pearson(x, y)
    assert r == pytest.approx(numpy.corrcoef(x, y)[0, 1])
    assert (low, high) == pytest.approx((-0.2796, 0.9861), abs=1e-3)  # tanh(1.0986 -+ 1.3859)
    assert slope(x, y) == pytest.approx(0.8)
    assert slope([1, 1], [1, 2]) is None
    for wrong in (
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4], [1, 2, 3]),
        ([1, 2, 3, math.nan], [1, 2, 3, 4]),
    ):
        with pytest.raises(ValueError, match="4 or more"):
            pearson(*wrong)


@pytest.mark.parametrize("rho", [0.0, 0.66, 0.95])
def test_the_interval_is_that_of_the_bootstrap(rho):
    generator = numpy.random.default_rng(3)
    x, noise = generator.standard_normal((2, 200))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    r, (low, high) = pearson(list(x), list(y))
    picks = generator.integers(0, 200, (4000, 200))
    a, b = x[picks], y[picks]
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    drawn = (a * b).sum(1) / numpy.sqrt((a * a).sum(1) * (b * b).sum(1))
    assert (low, high) == pytest.approx(
        numpy.percentile(drawn, [2.5, 97.5]), abs=0.2 * (high - low)
    )
    assert low < r < high


def test_the_interval_covers(rho=0.8, n=50, repeats=4000):
    generator = numpy.random.default_rng(4)
    x, noise = generator.standard_normal((2, repeats, n))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    held = sum(
        low <= rho <= high for _, (low, high) in (pearson(a, b) for a, b in zip(x, y, strict=True))
    )
    assert held / repeats == pytest.approx(0.95, abs=0.012)
