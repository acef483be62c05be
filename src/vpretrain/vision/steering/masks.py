"""Networks from an image to how much of each pixel is kept (Appendix G.2): a U-Net and a patch
transformer.

Both give ``mu`` in [0, 1], ``[B, 1, H, W]`` float32, of normalised images ``[B, 3, H, W]`` of any
float dtype and size (padded inside by repeating the border). Both start at the constant mask
``mu = keep_ratio``: the last layer's weights are zero and its bias is ``logit(keep_ratio)``. At the
first step the gradient reaches that layer alone, from the second step on everything."""

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

    One 3 x 3 convolution a stage; skips are added, not concatenated, which halves the work at full
    resolution.

    Args:
        keep_ratio: mean of the mask to start from, strictly between 0 and 1.
        base: channels at full resolution, a multiple of 8; twice as many a level down.
        depth: how often the resolution is halved, at least 1.
        seed: of the initial weights.

    Raises:
        UserError: a value is not accepted.
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
    """A tiny patchwise transformer (after DiT and SiT, without their time), about 200,000
    parameters.

    One logit a patch, brought to pixels by bilinear interpolation before the sigmoid.

    Args:
        keep_ratio: mean of the mask to start from, strictly between 0 and 1.
        patch_size: in pixels, at least 1; the grain of the mask.
        width: of the tokens, a multiple of 4 and of ``heads``.
        depth: transformer blocks, at least 1.
        heads: of their attention.
        seed: of the initial weights.

    Raises:
        UserError: a value is not accepted.
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
    """Gives the layer zero weights and the bias whose sigmoid is ``keep_ratio``."""
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
    """Images whose sides are the next multiples, the border repeated below and to the right."""
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
    """What looks at a view and emits its mask; ``patch`` is the tiny transformer (DiT/SiT
    style)."""
    base: PositiveInt = 16
    """``unet``: channels at full resolution, a multiple of 8."""
    depth: Layers = 3
    """Halvings of ``unet``; blocks of ``patch``."""
    patch_size: PositiveInt = 16
    """``patch``: the mask's grain in pixels."""
    width: PositiveInt = 64
    """``patch``: of its tokens."""
    heads: PositiveInt = 4
    """``patch``: of its attention."""
    sparsity: NonNegativeFloat = 0.131
    """l_spars of eq. 54: price of the squared distance of the mask's mean from the keep ratio."""
    total_variation: NonNegativeFloat = 0.144
    """l_tv of eq. 54: price of a rough mask; both prices are in ``value.unit``."""
    learning_rate: NonNegativeFloat = 1.54e-4
    """Of Adam on the mask network."""
    updates: PositiveInt = 1
    """Steps of the mask network a meta step, along the same dV/dmu."""
    meta_images: PositiveInt | None = None
    """Images of the learner's batch whose masks are valued at a meta step; null: all of them."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads or self.width % 4:
            message = f"designer.width is {self.width}; designer.heads ({self.heads}) and 4 have to"
            raise ValueError(f"{message} divide it")
        return self

    def build(self, site: Site) -> NetworkDesigner:
        return NetworkDesigner(
            self.masks(site.seed).to(site.device),
            site.surface(self.blur_sigma),
            MaskPrice(self.keep_ratio, self.sparsity, self.total_variation),
            Learning(self.learning_rate, site.reliability, self.updates),
            meta_rows=self.meta_images,
        )

    def masks(self, seed: int) -> nn.Module:
        """The mask network."""
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
