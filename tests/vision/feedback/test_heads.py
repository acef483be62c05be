"""Heads: batch normalisation and one linear map, in the slow form."""

import torch

from vpretrain.vision.backbone import Features
from vpretrain.vision.data.images import Picture
from vpretrain.vision.feedback.heads import ClassificationHead, DepthHead, Head
from vpretrain.vision.feedback.tasks import (
    Depth,
)

PIXELS = torch.zeros(3, 2, 2, dtype=torch.uint8)


def features(batch=3, width=4, grid=(2, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch, width, *grid, generator=generator) * 3 + 1
    return Features(patches, patches.mean(dim=(2, 3)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_dense_head_is_batch_norm_and_a_matrix_in_the_slow_form():
    given, head = features(), Head(4, 5, seeded())
    flat = given.patches.transpose(0, 1).flatten(1)
    normal = (given.patches - flat.mean(dim=1)[:, None, None]) / (
        flat.var(dim=1, correction=0)[:, None, None] + 1e-5
    ).sqrt()
    expected = torch.zeros(3, 5, 2, 3)
    for b in range(3):
        for y in range(2):
            for x in range(3):
                expected[b, :, y, x] = head.weight @ normal[b, :, y, x] + head.bias
    torch.testing.assert_close(head(given, (2, 3)), expected, rtol=1e-4, atol=1e-6)
    assert head(given, (8, 12)).shape == (3, 5, 8, 12)


def test_depth_head_is_positive_and_starts_at_the_mean_depth():
    pictures = [Picture("a", PIXELS, depth=torch.tensor([[4.0, 0.0], [6.0, 99.0]]))]
    head = Depth().head(4, pictures, seeded(), 0.1)
    assert isinstance(head, DepthHead)
    with torch.no_grad():
        out = head(features(), (4, 6))
        assert out.shape == (3, 4, 6) and out.min() > 0
        head.weight.zero_()
        torch.testing.assert_close(head(features(), (4, 6)), torch.full((3, 4, 6), 5.0))


def test_heads_take_features_of_any_dtype_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    heads = [
        Head(4, 2, seeded()),
        DepthHead(4, seeded()),
        ClassificationHead(4, 2, seeded()),
    ]
    half = Features(features().patches.bfloat16(), features().pooled.bfloat16())
    assert all(head(half, (4, 4)).dtype == torch.float32 for head in heads)
    assert torch.equal(torch.get_rng_state(), state)
