"""Light heads on frozen features: batch normalisation and one linear layer ("linear-BN").

On patches the linear layer is a 1x1 convolution. The heads are that light so that scores measure
the features.

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
    """Batch normalisation and a linear layer, computed in the head's own dtype.

    Args:
        width: D.
        outputs: output channels per patch (or picture).
        generator: generator of the initial weights (normal, standard deviation 0.01).
        momentum: weight of the newest batch in the running statistics; None: the plain average over
            all batches, which suits features that do not change.
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
        """Return ``[B, outputs, H, W]`` for pictures of ``size``.

        The outputs are resized (bilinear), not the much wider features."""
        patches = features.patches.to(self.weight.dtype)
        normal = self.norm(patches.flatten(2)).unflatten(2, patches.shape[2:])
        outputs = functional.conv2d(normal, self.weight[:, :, None, None], self.bias)
        return functional.interpolate(outputs, size, mode="bilinear", align_corners=False)


class DepthHead(Head):
    """Predicts depth in metres for every pixel.

    Args:
        width, generator, momentum: see :class:`Head`.
        start_metres: output of the bias alone before training, > 0.
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
        """Return depths ``[B, H, W]`` > 0 (softplus) in metres for pictures of ``size``."""
        return functional.softplus(super().forward(features, size))[:, 0]


class ClassificationHead(Head):
    """Predicts class logits for every picture."""

    def forward(self, features: Features, size: Size) -> Tensor:
        """Return logits ``[B, C]``; ``size`` is ignored."""
        normal = self.norm(features.pooled.to(self.weight.dtype))
        return functional.linear(normal, self.weight, self.bias)
