"""Mask networks (Appendix G.2): a U-Net and a patch transformer.

Both map normalised images ``[B, 3, H, W]`` of any float dtype and size (padded inside by repeating
the border) to ``mu`` in [0, 1], ``[B, 1, H, W]`` float32, where 1 keeps a pixel. Both start at the
constant mask ``mu = keep_ratio``: the last layer's weights are zero and its bias is
``logit(keep_ratio)``. Hence the first step's gradient reaches only that layer, and later ones all
parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from vpretrain.config.recipe import Layers
from vpretrain.method.network import Learning, NetworkDesigner
from vpretrain.system.contexts import own_random_state
from vpretrain.system.errors import user_error
from vpretrain.vision.ijepa.predictor import Block, check_width, patch_positions
from vpretrain.vision.steering.arms import ARMS, MaskArm, Site
from vpretrain.vision.steering.surfaces import MaskPrice


class UNetMasks(nn.Module):
    """A U-Net over pixels, about 86,000 parameters at the paper's size (base 16, depth 3).

    Each stage has one 3 x 3 convolution. Skip connections are added, not concatenated, which halves
    the work at full resolution.

    Args:
        keep_ratio: initial mean of the mask, strictly between 0 and 1.
        base: channels at full resolution, a multiple of 8; doubled at each level.
        depth: number of halvings of the resolution, at least 1.
        seed: seed of the initial weights.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(self, keep_ratio: float, *, base: int = 16, depth: int = 3, seed: int) -> None:
        super().__init__()
        if base < 8 or base % 8:
            message = "channels are normalised in groups of 8"
            raise user_error("designer.base", message, value=base, accepted="8, 16, 24, ...")
        if depth < 1:
            message = "the network has no levels"
            raise user_error("designer.depth", message, value=depth, accepted="1 or more")
        widths = [base * 2**level for level in range(depth)]
        self.depth = depth
        with own_random_state(seed):
            self.down = _stages([3, *widths[:-1]], widths)
            self.bottom = _stage(widths[-1], widths[-1])
            self.up = _stages(widths, [base, *widths[:-1]])
            self.head = nn.Conv2d(base, 1, kernel_size=1)
        _start_at(keep_ratio, self.head)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        states = _padded(images.to(self.head.weight.dtype), 2**self.depth)
        skips = []
        for stage in self.down:
            skips.append(stage(states))
            states = nn.functional.avg_pool2d(skips[-1], 2)
        states = self.bottom(states)
        for stage, skip in zip(reversed(self.up), reversed(skips), strict=True):
            larger = nn.functional.interpolate(states, scale_factor=2.0, mode="nearest")
            states = stage(larger + skip)
        return torch.sigmoid(self.head(states))[..., :height, :width]


class PatchMasks(nn.Module):
    """A tiny patch transformer (after DiT and SiT, without time), about 200,000 parameters.

    It predicts one logit per patch, interpolated (bilinear) to pixels before the sigmoid.

    Args:
        keep_ratio: initial mean of the mask, strictly between 0 and 1.
        patch_size: side of a patch in pixels, at least 1; the grain of the mask.
        width: width of the tokens, a multiple of 4 and of ``heads``.
        depth: number of transformer blocks, at least 1.
        heads: number of attention heads.
        seed: seed of the initial weights.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        keep_ratio: float,
        *,
        patch_size: int = 16,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        seed: int,
    ) -> None:
        super().__init__()
        check_width("designer.width", width, heads)
        for name, value in (("patch_size", patch_size), ("depth", depth)):
            if value < 1:
                where = f"designer.{name}"
                raise user_error(where, "there must be one", value=value, accepted="1 or more")
        self.patch_size = patch_size
        with own_random_state(seed):
            self.embed = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, 1)
        _start_at(keep_ratio, self.head)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = _padded(images.to(self.head.weight.dtype), self.patch_size)
        patches = self.embed(padded)  # [B, W, h, w]
        grid = patches.shape[-2:]
        ids = torch.arange(math.prod(grid), device=images.device)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = tokens + patch_positions(ids, grid[1], tokens.shape[-1], tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        logits = self.head(self.norm(tokens)).transpose(1, 2).unflatten(2, grid)  # [B, 1, h, w]
        size = [side * self.patch_size for side in grid]
        logits = nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return torch.sigmoid(logits)[..., :height, :width]


def _stages(channels: Sequence[int], outputs: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(_stage(*pair) for pair in zip(channels, outputs, strict=True))


def _stage(channels: int, out: int) -> nn.Module:
    convolution = nn.Conv2d(channels, out, kernel_size=3, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(8, out), nn.GELU())


def _start_at(keep_ratio: float, head: nn.Conv2d | nn.Linear) -> None:
    """Set the layer's weights to zero and its bias to ``logit(keep_ratio)``."""
    if not 0 < keep_ratio < 1:
        raise user_error(
            "designer.keep_ratio",
            "a mask that can still move starts strictly between nothing and everything",
            value=keep_ratio,
            accepted="above 0 and below 1",
        )
    nn.init.zeros_(head.weight)
    head.bias = nn.Parameter(torch.tensor([math.log(keep_ratio / (1 - keep_ratio))]))


def _padded(images: Tensor, multiple: int) -> Tensor:
    """Pad images at the bottom and right to the next multiple by repeating the border."""
    height, width = images.shape[-2:]
    border = (0, -width % multiple, 0, -height % multiple)
    return nn.functional.pad(images, border, mode="replicate")


@ARMS.declare(
    "ascent",
    "the paper's designer: a network learns masks of pictures, so that their value rises (DINO: "
    "views; I-JEPA: context)",
)
class AscentArm(MaskArm):
    network: Literal["unet", "patch"] = "unet"
    """Network that predicts the mask of a picture: a U-Net, or a tiny patch transformer (DiT/SiT
    style)."""
    base: PositiveInt = 16
    """``unet``: channels at full resolution, a multiple of 8."""
    depth: Layers = 3
    """``unet``: number of resolution halvings. ``patch``: number of transformer blocks."""
    patch_size: PositiveInt = 16
    """``patch``: side of a patch in pixels, the grain of the mask."""
    width: PositiveInt = 64
    """``patch``: width of the tokens, a multiple of 4 and of ``heads``."""
    heads: PositiveInt = 4
    """``patch``: number of attention heads."""
    sparsity: NonNegativeFloat = 0.131
    """l_spars of eq. 54: weight of the squared distance of the mask's mean from the keep ratio, in
    ``value.unit``."""
    total_variation: NonNegativeFloat = 0.144
    """l_tv of eq. 54: weight of the mask's total variation, in ``value.unit``."""
    learning_rate: NonNegativeFloat = 1.54e-4
    """Learning rate of Adam on the mask network."""
    updates: PositiveInt = 1
    """Steps of the mask network per meta step, all with the same dV/dmu."""
    meta_images: PositiveInt | None = None
    """Images of the batch whose masks are valued at a meta step; null: all."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads or self.width % 4:
            message = f"designer.width is {self.width}; designer.heads ({self.heads}) and 4 have to"
            raise ValueError(f"{message} divide it")
        return self

    @property
    def most_images(self) -> int:
        return self.meta_images or 0

    def build(self, site: Site) -> NetworkDesigner:
        return NetworkDesigner(
            self.masks(site.seed).to(site.device),
            site.surface(self.blur_sigma),
            MaskPrice(self.keep_ratio, self.sparsity, self.total_variation),
            Learning(self.learning_rate, site.reliability, self.updates),
            meta_rows=self.meta_images,
        )

    def masks(self, seed: int) -> nn.Module:
        """Make the mask network."""
        if self.network == "unet":
            return UNetMasks(self.keep_ratio, base=self.base, depth=self.depth, seed=seed)
        return PatchMasks(
            self.keep_ratio,
            patch_size=self.patch_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            seed=seed,
        )
