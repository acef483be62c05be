"""I-JEPA's multi-block masks: several target blocks, and one large context block without them.

Patches are numbered row by row over an ``h x w`` grid: patch ``i`` lies in row ``i // w`` and
column ``i % w``.

Shapes: B images, M target blocks per image, K patches per target block, N context patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveInt, ValidationInfo, field_validator
from torch import Tensor

from vpretrain.config.section import Section
from vpretrain.system.errors import UserError, user_error
from vpretrain.vision.fields import Range

REDRAWS = 100
"""Redraws of the blocks of images with too little context before the grid is called too small."""


class BlockSettings(Section):
    """I-JEPA's block masks; the context block has the aspect ratio of the grid."""

    targets: PositiveInt = 4
    """Target blocks per image."""
    target_scale: Range = (0.15, 0.2)
    """Range of the fraction of the patch grid that a target block covers."""
    target_aspect: Range = (0.75, 1.5)
    """Range of a target block's height divided by its width."""
    context_scale: Range = (0.85, 1.0)
    """Range of the fraction of the patch grid that the context block covers before the targets are
    removed from it."""
    least_context_patches: PositiveInt = 4
    """Fewest context patches left after the targets are removed."""

    @field_validator("target_scale", "target_aspect", "context_scale")
    @classmethod
    def _can_be_drawn_from(cls, value: Range, info: ValidationInfo) -> Range:
        most = math.inf if info.field_name == "target_aspect" else 1.0
        if not 0 < value[0] <= value[1] <= most:
            raise ValueError(
                "this is not a range that blocks can be drawn from; give two numbers, the smaller "
                "first, above 0 and, for a scale, at most 1"
            )
        return value


@dataclass(frozen=True, eq=False)
class BlockMasks:
    """Context and target patches of a batch, which never overlap within an image.

    Args:
        context: ``[B, N]`` int64 patch numbers, distinct and ascending within a row.
        targets: ``[B, M, K]`` int64 patch numbers, ascending within a block; blocks of an image may
            overlap.
    """

    context: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> BlockMasks:
        return BlockMasks(self.context.to(device), self.targets.to(device))


def check_grid(grid: tuple[int, int], settings: BlockSettings) -> None:
    """Check that a grid has room for the smallest target blocks side by side and the least context.

    Raises:
        UserError: the grid (rows and columns of patches) is too small; names the patches needed.
    """
    scale = settings.target_scale[0]
    smallest = min(math.prod(_extent(grid, scale, aspect)) for aspect in settings.target_aspect)
    needed = settings.targets * smallest + settings.least_context_patches
    if math.prod(grid) < needed:
        raise user_error(
            "learner.blocks",
            f"a grid of {grid[0]} x {grid[1]} patches has no room for {settings.targets} target "
            "blocks and a context; take larger images, smaller patches or fewer targets",
            value=f"{math.prod(grid)} patches",
            accepted=f"at least {needed} patches",
        )


def sample_blocks(
    images: int, grid: tuple[int, int], settings: BlockSettings, *, seed: int
) -> BlockMasks:
    """Draw the masks of one batch from a seed, without touching the global random state.

    As in I-JEPA, block sizes are drawn once per batch and positions once per image, so that every
    target block has K patches. The number of context patches left differs between images; all are
    reduced to the smallest number by dropping random patches, so that the batch stacks.

    Args:
        images: B, at least 1.
        grid: rows and columns of patches.
        settings: number and sizes of blocks.
        seed: any int64.

    Returns:
        Masks on the CPU.

    Raises:
        UserError: the grid is too small for these settings.
    """
    check_grid(grid, settings)
    generator = torch.Generator().manual_seed(seed)

    def uniform(bounds: tuple[float, float]) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * float(
            torch.rand((), generator=generator, dtype=torch.float64)
        )

    target_extent = _extent(grid, uniform(settings.target_scale), uniform(settings.target_aspect))
    context_extent = _extent(grid, uniform(settings.context_scale), grid[0] / grid[1])

    def draw(count: int) -> tuple[Tensor, Tensor]:
        targets = _place((count, settings.targets), target_extent, grid, generator)
        block = _place((count,), context_extent, grid, generator)
        return targets, block & ~targets.any(dim=1)

    targets, context = draw(images)  # bool: [B, M, h * w] and [B, h * w]
    for _ in range(REDRAWS):
        poor = context.sum(dim=1) < settings.least_context_patches
        if not poor.any():
            break
        targets[poor], context[poor] = draw(int(poor.sum()))
    else:
        raise _too_poor(context, grid, settings)
    kept = int(context.sum(dim=1).min())
    lots = torch.rand(context.shape, generator=generator).masked_fill(~context, -1.0)
    return BlockMasks(
        context=lots.topk(kept, dim=1).indices.sort(dim=1).values,
        targets=targets.nonzero()[:, -1].reshape(
            images, settings.targets, math.prod(target_extent)
        ),
    )


def _too_poor(context: Tensor, grid: tuple[int, int], settings: BlockSettings) -> UserError:
    return user_error(
        "learner.blocks",
        f"after {REDRAWS} draws on a grid of {grid[0]} x {grid[1]} patches the targets still leave "
        "too little context; take larger images, smaller patches, or fewer or smaller targets",
        value=f"{int(context.sum(dim=1).min())} patches of context",
        accepted=f"at least {settings.least_context_patches}",
    )


def _extent(grid: tuple[int, int], scale: float, aspect: float) -> tuple[int, int]:
    """Return height and width in patches of a block that covers the fraction ``scale`` of the grid.

    Rounded, and clamped to the grid."""
    area = scale * grid[0] * grid[1]
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(height, 1), grid[0]), min(max(width, 1), grid[1])


def _place(
    shape: tuple[int, ...],
    extent: tuple[int, int],
    grid: tuple[int, int],
    generator: torch.Generator,
) -> Tensor:
    """Place blocks of one extent at random: bool ``[*shape, h * w]``, True inside the block."""
    sides = []
    for length, size in zip(extent, grid, strict=True):
        start = torch.randint(size - length + 1, (*shape, 1), generator=generator)
        at = torch.arange(size)
        sides.append((at >= start) & (at < start + length))
    rows, columns = sides
    return (rows[..., :, None] & columns[..., None, :]).flatten(-2)
