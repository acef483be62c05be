"""The mask networks: where they start, what they give, and that they can learn."""

import math

import pytest
import torch

from vpretrain.system.errors import UserError
from vpretrain.vision.steering.masks import PatchMasks, UNetMasks

NETWORKS = [UNetMasks, PatchMasks]


def images(height=32, width=48, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def after_steps(network, steps, rate=0.1):
    """The network after a few steps that ask for a bright left half."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        mu = network(images())
        (mu[..., 24:].mean() - mu[..., :24].mean()).backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("keep_ratio", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("kind", NETWORKS)
def test_starts_at_the_constant_mask_of_the_keep_ratio(kind, keep_ratio):
    mu = kind(keep_ratio, seed=0)(images())
    assert mu.shape == (2, 1, 32, 48) and mu.dtype == torch.float32
    torch.testing.assert_close(mu, torch.full_like(mu, keep_ratio), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [(32, 48), (37, 50), (5, 3), (1, 1)])
@pytest.mark.parametrize("kind", NETWORKS)
def test_any_size_and_always_within_zero_and_one(kind, size):
    network = after_steps(
        kind(0.5, seed=0), 2, rate=50.0
    )  # far from the start, so that the sigmoid saturates somewhere
    mu = network(1000 * images(*size))
    assert mu.shape == (2, 1, *size)
    assert torch.isfinite(mu).all() and mu.min() >= 0 and mu.max() <= 1


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_gradient_reaches_the_bias_at_once_and_every_parameter_after_one_step(kind):
    network = kind(0.5, seed=0)
    network(images()).mean().backward()
    assert network.head.bias.grad.abs().sum() > 0 and network.head.weight.grad.abs().sum() > 0
    network = after_steps(kind(0.5, seed=0), 1)
    network.zero_grad()
    mu = network(images())
    (mu * torch.randn(mu.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    still = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not still


@pytest.mark.parametrize("kind", NETWORKS)
def test_learns_a_mask_that_differs_from_place_to_place(kind):
    network = kind(0.5, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    pictures = torch.zeros(2, 3, 32, 32)
    pictures[0, :, :, :16] = (
        1  # the bright half is on the left in one image and on the right in the other
    )
    pictures[1, :, :, 16:] = 1
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(pictures), pictures[:, :1]).backward()
        optimizer.step()
    mu = network(pictures).detach()
    assert mu[0, ..., :16].mean() > 0.8 > 0.2 > mu[0, ..., 16:].mean()
    assert mu[1, ..., 16:].mean() > 0.8 > 0.2 > mu[1, ..., :16].mean()


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_seed_gives_the_weights_and_leaves_the_global_generator_alone(kind):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = kind(0.5, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = kind(0.5, seed=1), kind(0.5, seed=2)
    flat = [
        torch.cat([p.detach().flatten() for p in network.parameters()])
        for network in (first, again, other)
    ]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


def test_a_patch_mask_is_coarse_and_a_pixel_mask_is_not():
    """Bilinear interpolation of a 2 x 2 grid is flat outside of the patch centres; the U-Net
    follows pixels.
    """
    coarse = after_steps(PatchMasks(0.5, seed=0), 2, rate=1.0)(images(32, 32))
    torch.testing.assert_close(coarse[..., :8, :8], coarse[..., :1, :1].expand(-1, -1, 8, 8))
    fine = after_steps(UNetMasks(0.5, seed=0), 2, rate=1.0)(images(32, 32))
    assert fine[..., :8, :8].std() > 0


@pytest.mark.parametrize(("kind", "most"), [(UNetMasks, 100_000), (PatchMasks, 300_000)])
def test_few_parameters(kind, most):
    assert sum(p.numel() for p in kind(0.5, seed=0).parameters()) < most


def test_the_mask_does_not_depend_on_the_dtype_of_the_images():
    network = after_steps(UNetMasks(0.5, seed=0), 2)
    wide = network(images().double())
    assert wide.dtype == torch.float32 and torch.equal(wide, network(images()))
    assert network(images().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("keep_ratio", [0, 1, -0.1, math.nan])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_keep_ratio_without_slope_is_refused(kind, keep_ratio):
    with pytest.raises(UserError, match=r"designer\.keep_ratio"):
        kind(keep_ratio, seed=0)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: UNetMasks(0.5, base=12, seed=0), "base"),
        (lambda: UNetMasks(0.5, depth=0, seed=0), "depth"),
        (lambda: PatchMasks(0.5, width=66, heads=4, seed=0), "width"),
        (lambda: PatchMasks(0.5, patch_size=0, seed=0), "patch_size"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused_by_key(make, key):
    with pytest.raises(UserError, match=rf"designer\.{key}"):
        make()
