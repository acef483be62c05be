"""Smooth random places in pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vpretrain.system import distributed


def smooth_ranks(count: int, size: Sequence[int], grain: int, generator: torch.Generator) -> Tensor:
    """The order of the pixels of smooth noise: int64 ``[count, H * W]`` on the CPU, each row a
    permutation.

    Args:
        count: pictures of this process. Noise is drawn for those of all processes, so that a
            picture has the same whichever process has it.
        size: H and W.
        grain: side in pixels of the grid that the noise is drawn on; bilinear in between.
        generator: of the noise.
    """
    grid = [max(2, math.ceil(side / grain)) for side in size]
    noise = torch.randn(count * distributed.world(), 1, *grid, generator=generator)
    smooth = functional.interpolate(noise, tuple(size), mode="bilinear", align_corners=False)
    smooth = smooth.flatten(1)
    # Where the coarse grid ends the noise is constant: the order of equals is drawn too, not read
    # off their places.
    smooth = smooth + 1e-4 * torch.rand(smooth.shape, generator=generator)
    mine = smooth[distributed.rank() :: distributed.world()]
    return mine.argsort(dim=1).argsort(dim=1)
