"""Scores with their standard errors."""

from __future__ import annotations

import math

import pytest

from vpretrain.run.scores import mean_stderr, proportion_stderr


def test_standard_errors_by_hand() -> None:
    assert mean_stderr([2.0, 4.0, 6.0]) == pytest.approx(2.0 / math.sqrt(3))
    assert mean_stderr([1.0]) is None
    assert proportion_stderr(25, 100) == pytest.approx(math.sqrt(0.25 * 0.75 / 100))
    assert proportion_stderr(0, 10) == 0.0
    for successes, n in ((11, 10), (-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="successes"):
            proportion_stderr(successes, n)
