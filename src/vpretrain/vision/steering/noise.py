"""Smooth noise over the pixels of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vpretrain.system import distributed


def smooth_ranks(count: int, size: Sequence[int], grain: int, generator: torch.Generator) -> Tensor:
    """Draw smooth noise and return the rank of each pixel: int64 ``[count, H * W]`` on the CPU.

    Each row is a permutation of 0 .. H * W - 1.

    Args:
        count: number of pictures of this process. Noise is drawn for the pictures of all processes,
            so that it does not depend on how they are split.
        size: H and W.
        grain: side in pixels of the noise grid; bilinear interpolation in between.
        generator: generator of the noise.
    """
    grid = [max(2, math.ceil(side / grain)) for side in size]
    noise = torch.randn(count * distributed.world(), 1, *grid, generator=generator)
    smooth = functional.interpolate(noise, tuple(size), mode="bilinear", align_corners=False)
    smooth = smooth.flatten(1)
    # The noise is constant beyond the outermost grid points; a small random term breaks the ties,
    # which would otherwise be ordered by position.
    smooth = smooth + 1e-4 * torch.rand(smooth.shape, generator=generator)
    mine = smooth[distributed.rank() :: distributed.world()]
    return mine.argsort(dim=1).argsort(dim=1)
