"""Item-level comparisons: known values, coverage, and that a null is rarely called anything."""

import tracemalloc

import numpy
import pytest

from vpretrain.run import paired_tests
from vpretrain.run.paired_tests import mcnemar, paired_items


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar(3, 3) == 1
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)


def test_one_seed_of_right_and_wrong_uses_mcnemar():
    base = [[0.0] * 10 + [1.0] * 90]
    arm = [[1.0] * 8 + [0.0] * 2 + [1.0] * 88 + [0.0] * 2]
    result = paired_items(arm, base)
    assert result.difference == pytest.approx(0.06)
    assert result.p == pytest.approx(mcnemar(8, 2))


def test_coverage_of_the_interval(monkeypatch):
    monkeypatch.setattr(paired_tests, "RESAMPLES", 1000)
    generator = numpy.random.default_rng(0)
    covered = 0
    for trial in range(300):
        items = generator.normal(0.1, 1.0, size=(3, 80)) + generator.normal(0, 1, size=80)
        low, high = paired_items(items, numpy.zeros((3, 80)), seed=trial).ci95
        covered += low <= 0.1 <= high
    assert 0.91 <= covered / 300 <= 0.985  # 95% within three standard errors of 300 trials


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_items([[1.0, 0.0]], [[1.0]])


@pytest.mark.parametrize("count", [2, 37, 500])
def test_draws_that_come_in_parts_are_the_same(count):
    items = numpy.random.default_rng(3).normal(size=count)
    generator = numpy.random.default_rng(7)
    draws = generator.multinomial(count, numpy.full(count, 1 / count), size=paired_tests.RESAMPLES)
    numpy.testing.assert_array_equal(paired_tests._resampled_means(items, 7), draws @ items / count)


def test_many_items_take_little_memory():
    items = numpy.random.default_rng(0).normal(size=(1, 3000))
    tracemalloc.start()
    paired_items(items, numpy.zeros((1, 3000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20  # all draws at once are 92 MiB of whole numbers, and as many floats
