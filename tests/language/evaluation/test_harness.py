"""lm-eval adapters: Pass@k, against draws."""

from itertools import combinations

import pytest

pytest.importorskip("lm_eval", reason="the eval extra is not installed")
from vpretrain.language.evaluation.harness import pass_at_k


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n):
    for correct in range(n + 1):
        samples = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            draws = [any(draw) for draw in combinations(samples, k)]
            assert pass_at_k(n, correct, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_of_many_and_of_nonsense():
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4)
    for n, correct, k in ((4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)):
        with pytest.raises(ValueError, match="accepted"):
            pass_at_k(n, correct, k)
