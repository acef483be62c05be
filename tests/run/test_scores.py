"""Scores with their standard errors."""

from __future__ import annotations

import math

import pytest
import torch

from vpretrain.run.scores import check_finite, mean_stderr, score
from vpretrain.system.errors import Fault


def test_standard_errors_by_hand() -> None:
    assert mean_stderr([2.0, 4.0, 6.0]) == pytest.approx(2.0 / math.sqrt(3))
    assert mean_stderr([1.0]) is None
    solved = score(torch.tensor([1.0] * 25 + [0.0] * 75), higher_is_better=True)
    assert (solved.value, solved.n) == (0.25, 100)
    assert solved.stderr == pytest.approx(math.sqrt(0.25 * 0.75 / 99))
    assert score(torch.zeros(10), higher_is_better=True).stderr == 0.0


def test_an_item_that_is_no_number_is_left_to_who_checks_the_score() -> None:
    broken = score(torch.tensor([1.0, math.nan, 2.0]), higher_is_better=True)
    assert math.isnan(broken.value) and math.isnan(broken.stderr) and broken.n == 3
    with pytest.raises(Fault, match=r"at the end test/nll is not finite; lower the rate"):
        check_finite({"test/nll": broken}, "at the end", "lower the rate")
