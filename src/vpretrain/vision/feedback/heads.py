"""Light heads on frozen features: batch normalisation and one linear map ("linear-BN"; a 1x1
convolution on patches), so that a score is one of the features.

Shapes: B pictures, D feature width, h x w patches, H x W pixels, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vpretrain.vision.backbone import Features

Size = tuple[int, int]
"""Height and width in pixels."""


class Head(nn.Module):
    """Batch normalisation and a linear map, computed in the head's own dtype whatever that of the
    features.

    Args:
        width: D.
        outputs: how many figures a patch (or picture) gets.
        generator: of the first weights (normal, standard deviation 0.01).
        momentum: weight of the newest batch in the running statistics; None keeps their plain
            average over all batches, which is right where features do not change.
    """

    def __init__(
        self, width: int, outputs: int, generator: torch.Generator, momentum: float | None = 0.1
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, momentum=momentum)
        self.weight = nn.Parameter(
            torch.empty(outputs, width).normal_(std=0.01, generator=generator)
        )
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Features, size: Size) -> Tensor:
        """``[B, outputs, H, W]`` for pictures of ``size``: only the outputs are resized (bilinear),
        never the much wider features."""
        patches = features.patches.to(self.weight.dtype)
        normal = self.norm(patches.flatten(2)).unflatten(2, patches.shape[2:])
        outputs = functional.conv2d(normal, self.weight[:, :, None, None], self.bias)
        return functional.interpolate(outputs, size, mode="bilinear", align_corners=False)


class SegmentationHead(Head):
    """Class logits of every pixel."""


class DepthHead(Head):
    """Metres of every pixel.

    Args:
        width, generator, momentum: as for :class:`Head`.
        start_metres: its output before training, > 0.
    """

    def __init__(
        self,
        width: int,
        generator: torch.Generator,
        momentum: float | None = 0.1,
        *,
        start_metres: float = 1.0,
    ) -> None:
        super().__init__(width, 1, generator, momentum)
        nn.init.constant_(self.bias, start_metres + math.log(-math.expm1(-start_metres)))

    def forward(self, features: Features, size: Size) -> Tensor:
        """``[B, H, W]`` metres > 0 (softplus) for pictures of ``size``."""
        return functional.softplus(super().forward(features, size))[:, 0]


class ClassificationHead(Head):
    """Class logits of every picture."""

    def forward(self, features: Features, size: Size) -> Tensor:
        """``[B, C]`` logits; the size does not matter."""
        normal = self.norm(features.pooled.to(self.weight.dtype))
        return functional.linear(normal, self.weight, self.bias)
