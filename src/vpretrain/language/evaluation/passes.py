"""Pass@k from n samples of a problem."""

from __future__ import annotations

KS = (1, 2, 4, 8, 16)
"""The k that are reported, as far as there are samples."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold a correct one:
    ``1 - C(n-c, k) / C(n, k)``.

    This estimates Pass@k of a problem without bias (Chen et al., arXiv 2107.03374, eq. 1);
    ``1 - (1 - c/n)^k`` would be too low. The ratio of binomials is a product of k-free factors, so
    nothing overflows.

    Args:
        n: samples drawn, at least 1.
        correct: how many of them are right, 0 to n.
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
