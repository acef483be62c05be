"""Surfaces through which masks enter a learner's task, and the price of masks (Appendix G.2).

Masks are ``[N, 1, H, W]`` in [0, 1], one for each normalised image ``[N, 3, H, W]`` of the
surface's inputs. Shapes: G global views, B images, H x W pixels, N inputs of the mask network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from vpretrain.method.network import Surface
from vpretrain.method.roles import Bounds, ContextT, TaskT
from vpretrain.vision.dino import learner as dino
from vpretrain.vision.ijepa import learner as ijepa
from vpretrain.vision.ijepa.blocks import BlockMasks
from vpretrain.vision.ijepa.learner import IJepaTask
from vpretrain.vision.steering import views
from vpretrain.vision.steering.views import BaselineViews, LearnedTargets, LearnedViews


class Masks(Surface[ContextT, TaskT]):
    """Base class of the two surfaces.

    Attributes:
        picture_dim: dimension of the control that indexes pictures.
        patch_size: side in pixels of the squares over which the learner sees the mean of a mask.
    """

    picture_dim: ClassVar[int]
    patch_size: int = 1

    @property
    def bounds(self) -> Bounds:
        """Limits at which masks are degenerate: all or nothing is hidden, or masks are constant."""
        return {"mask_mean": (0.0, 1.0), "mask_std": (0.0, math.inf)}

    def metrics(self, choice: Tensor) -> dict[str, float]:
        """Return :func:`mask_metrics` of what the learner sees."""
        return mask_metrics(functional.avg_pool2d(choice, self.patch_size))


class ViewMasks(Masks[dino.Context, dino.ViewTask]):
    """Masks of DINO's global views: 1 keeps a pixel, 0 blurs it by ``sigma`` pixels (eq. 49).

    ``local_views_in_value`` is the learner's setting."""

    picture_dim = 1  # [G, B, 1, H, W]

    def __init__(self, sigma: float, *, local_views_in_value: bool) -> None:
        self.sigma, self.local_views_in_value = sigma, local_views_in_value

    def baseline_task(self, context: dino.Context) -> BaselineViews:
        return BaselineViews()

    def valued_baseline_task(self, context: dino.Context) -> LearnedTargets | LearnedViews:
        """Return the plain views as a task with controls.

        The control is the teacher's own targets, which needs no pass below S. If the value of masks
        lacks the pairs with local views, it is a mask of ones instead, so that both values lack
        them."""
        if self.local_views_in_value:
            return LearnedTargets(context.teacher_targets)
        images = self.inputs(context)
        return self.task(context, images.new_ones(len(images), 1, *images.shape[-2:]))

    def inputs(self, context: dino.Context) -> Tensor:
        """Return the global views, ``[G * B, 3, H, W]``."""
        return context.global_views.flatten(0, 1)

    def task(self, context: dino.Context, choice: Tensor) -> LearnedViews:
        masks = choice.unflatten(0, context.global_views.shape[:2])
        return LearnedViews(masks, context.blurred(self.sigma))

    def part(self, context: dino.Context, rows: int) -> dino.Context:
        local = None if context.local_views is None else context.local_views[:, :rows]
        return dino.Context(context.batch, context.global_views[:, :rows], local, context.learner)


class ContextMasks(Masks[ijepa.IJepaContext, IJepaTask]):
    """Masks of I-JEPA's context: how much of each context patch the encoder sees.

    The network sees the whole image, target blocks included, so that a learned mask can leak
    information about the targets to the encoder.

    Args:
        patch_size: side of the encoder's patches in pixels.
    """

    picture_dim = 0  # [B, L]

    def __init__(self, patch_size: int) -> None:
        self.patch_size = patch_size

    def baseline_task(self, context: ijepa.IJepaContext) -> IJepaTask:
        return ijepa.baseline_task(context)

    def valued_baseline_task(self, context: ijepa.IJepaContext) -> IJepaTask:
        return ijepa.baseline_task(context)

    def inputs(self, context: ijepa.IJepaContext) -> Tensor:
        return context.pixels

    def task(self, context: ijepa.IJepaContext, choice: Tensor) -> IJepaTask:
        """Return the task of a mask of pixels, averaged over each patch, or of patches."""
        seen = functional.adaptive_avg_pool2d(choice, context.grid).flatten(1)
        return MaskedContext(ijepa.baseline_task(context).weights, seen)

    def part(self, context: ijepa.IJepaContext, rows: int) -> ijepa.IJepaContext:
        blocks = BlockMasks(context.blocks.context[:rows], context.blocks.targets[:rows])
        tensors = (context.tokens, context.contents, context.answers)
        rest = (each[:rows] for each in tensors)
        return ijepa.IJepaContext(context.pixels[:rows], context.grid, blocks, *rest)


class MaskedContext(IJepaTask):
    """An I-JEPA task whose only control is the context mask."""

    def controls(self) -> tuple[Tensor, ...]:
        return (self.context_mask,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> MaskedContext:
        (mask,) = controls
        return MaskedContext(self.weights, mask)


@dataclass(frozen=True)
class MaskPrice:
    """``l_s R_spars + l_tv R_tv`` (eq. 54).

    Args:
        keep_ratio: target of the mask's mean, in (0, 1).
        sparsity, total_variation: weights ``l_s`` and ``l_tv``, >= 0.
    """

    keep_ratio: float
    sparsity: float
    total_variation: float

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the price of masks, a scalar; gradients flow."""
        sparsity = views.sparsity(masks, self.keep_ratio)
        return self.sparsity * sparsity + self.total_variation * views.total_variation(masks)


def mask_metrics(masks: Tensor) -> dict[str, float]:
    """Return metrics of masks ``[N, 1, H, W]``.

    ``mask_mean``; ``mask_std``: standard deviation over the values of an image, averaged over
    images (0: every mask has collapsed to a constant); ``mask_spread``: standard deviation of the
    images' means (0: all images keep the same fraction); ``mask_total_variation``; ``gate``: mean
    fraction that is blurred."""
    pixels = masks.flatten(1)
    return {
        "mask_mean": float(pixels.mean()),
        "mask_std": float(pixels.std(dim=1, correction=0).mean()),
        "mask_spread": float(pixels.mean(dim=1).std(correction=0)),
        "mask_total_variation": float(views.total_variation(masks)),
        "gate": 1 - float(pixels.mean()),
    }
