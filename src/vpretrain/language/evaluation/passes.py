"""Pass@k from n samples of a problem."""

from __future__ import annotations

KS = (1, 2, 4, 8, 16)
"""The values of k that are reported, up to the number of samples."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The probability that k of n samples, drawn without replacement, contain a correct one:
    ``1 - C(n-c, k) / C(n, k)``.

    This is an unbiased estimate of a problem's Pass@k (Chen et al., arXiv 2107.03374, eq. 1);
    ``1 - (1 - c/n)^k`` would be too low. The ratio of binomials is computed as the product of
    ``1 - k/i`` for i from n-c+1 to n, so that nothing overflows.

    Args:
        n: number of samples, at least 1.
        correct: number of correct samples, 0 to n.
        k: 1 to n.

    Raises:
        ValueError: a number is out of range.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(
            f"n={n}, correct={correct}, k={k}; accepted: 0 <= correct <= n and 1 <= k <= n"
        )
    missed = 1.0
    for drawn in range(n - correct + 1, n + 1):
        missed *= max(0.0, 1.0 - k / drawn)
    return 1.0 - missed
