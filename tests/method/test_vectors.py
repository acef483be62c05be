"""Gradients as vectors, by name."""

import pytest
import torch

from tests.method.test_value import random_vector
from vpretrain.method import vectors
from vpretrain.method.value import Alignment


def test_vectors():
    a, b = random_vector(0), random_vector(1)
    flat = lambda v: torch.cat([v["a"].flatten(), v["b"]])  # noqa: E731
    assert float(vectors.inner(a, b)) == pytest.approx(float(flat(a) @ flat(b)))
    assert float(vectors.norm(a)) == pytest.approx(float(flat(a).norm()))
    torch.testing.assert_close(flat(vectors.combine((2.0, a), (-1.0, b))), 2 * flat(a) - flat(b))
    torch.testing.assert_close(flat(vectors.mean([a, b])), (flat(a) + flat(b)) / 2)


@pytest.mark.parametrize("silent", ["down", "pre"])
def test_cosine_with_nothing_is_nothing(silent):
    """Rewards that are all equal, or a batch that teaches nothing, point nowhere."""
    sides = {
        "down": {"w": torch.ones(3)},
        "pre": {"w": torch.ones(3)},
        silent: {"w": torch.zeros(3)},
    }
    value, direction = Alignment("cosine")(sides["down"], sides["pre"], 0.1)
    assert float(value) == 0 and direction["w"].tolist() == [0, 0, 0]
