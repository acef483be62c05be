"""Where masks enter a learner's task, and what they cost (Appendix G.2).

Masks are ``[N, 1, H, W]`` in [0, 1], of the surface's inputs: normalised images ``[N, 3, H, W]``.
Shapes: G global views, B images, H x W pixels, N images that a network sees."""

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
    """What both surfaces share.

    Attributes:
        picture_dim: which dimension of the control counts pictures.
    """

    picture_dim: ClassVar[int]

    @property
    def bounds(self) -> Bounds:
        """Masks that hide all or nothing, or are even over their pictures, design nothing."""
        return {"mask_mean": (0.0, 1.0), "mask_std": (0.0, math.inf)}

    def metrics(self, choice: Tensor) -> dict[str, float]:
        return mask_metrics(choice)


class ViewMasks(Masks[dino.Context, dino.ViewTask]):
    """DINO's global views: kept where the mask is 1, blurred by ``sigma`` pixels where it is 0 (eq.
    49). ``local_views_in_value`` is as the learner has it."""

    picture_dim = 1  # [G, B, 1, H, W]

    def __init__(self, sigma: float, *, local_views_in_value: bool) -> None:
        self.sigma, self.local_views_in_value = sigma, local_views_in_value

    def baseline_task(self, context: dino.Context) -> BaselineViews:
        return BaselineViews()

    def valued_baseline_task(self, context: dino.Context) -> LearnedTargets | LearnedViews:
        """Plain views, valued through the teacher's own targets, which needs no pass below S; or,
        where a mask's value lacks the pairs with local views, through a mask of ones."""
        if self.local_views_in_value:
            return LearnedTargets(context.teacher_targets)
        images = self.inputs(context)
        return self.task(context, images.new_ones(len(images), 1, *images.shape[-2:]))

    def inputs(self, context: dino.Context) -> Tensor:
        """The global views, one after the other."""
        return context.global_views.flatten(0, 1)

    def task(self, context: dino.Context, choice: Tensor) -> LearnedViews:
        masks = choice.unflatten(0, context.global_views.shape[:2])
        return LearnedViews(masks, context.blurred(self.sigma))

    def part(self, context: dino.Context, rows: int) -> dino.Context:
        local = None if context.local_views is None else context.local_views[:, :rows]
        return dino.Context(context.batch, context.global_views[:, :rows], local, context.learner)


class ContextMasks(Masks[ijepa.IJepaContext, IJepaTask]):
    """I-JEPA's context: how much of each patch the encoder sees.

    The network looks at the whole image, target blocks included, so that where a learned mask hides
    the context may carry information on the targets to the encoder."""

    picture_dim = 0  # [B, L]

    def baseline_task(self, context: ijepa.IJepaContext) -> IJepaTask:
        return ijepa.baseline_task(context)

    def valued_baseline_task(self, context: ijepa.IJepaContext) -> IJepaTask:
        return ijepa.baseline_task(context)

    def inputs(self, context: ijepa.IJepaContext) -> Tensor:
        return context.pixels

    def task(self, context: ijepa.IJepaContext, choice: Tensor) -> IJepaTask:
        """The mean of the mask over each patch says how much of it is seen."""
        seen = functional.adaptive_avg_pool2d(choice, context.grid).flatten(1)
        return MaskedContext(ijepa.baseline_task(context).weights, seen)

    def part(self, context: ijepa.IJepaContext, rows: int) -> ijepa.IJepaContext:
        blocks = BlockMasks(context.blocks.context[:rows], context.blocks.targets[:rows])
        tensors = (context.tokens, context.contents, context.answers)
        rest = (each[:rows] for each in tensors)
        return ijepa.IJepaContext(context.pixels[:rows], context.grid, blocks, *rest)


class MaskedContext(IJepaTask):
    """An I-JEPA task of which the context mask alone is steered."""

    def controls(self) -> tuple[Tensor, ...]:
        return (self.context_mask,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> MaskedContext:
        (mask,) = controls
        return MaskedContext(self.weights, mask)


@dataclass(frozen=True)
class MaskPrice:
    """``l_s R_spars + l_tv R_tv`` (eq. 54).

    Args:
        keep_ratio: what the mask's mean is drawn to, in (0, 1).
        sparsity, total_variation: ``l_s`` and ``l_tv``, >= 0.
    """

    keep_ratio: float
    sparsity: float
    total_variation: float

    def __call__(self, masks: Tensor) -> Tensor:
        """What masks cost, a scalar; gradients flow."""
        sparsity = views.sparsity(masks, self.keep_ratio)
        return self.sparsity * sparsity + self.total_variation * views.total_variation(masks)


def mask_metrics(masks: Tensor) -> dict[str, float]:
    """How masks ``[N, 1, H, W]`` look.

    ``mask_mean``; ``mask_std``, over the pixels of an image, averaged over images (0: each mask has
    collapsed to a constant); ``mask_spread``, standard deviation of the images' means (0: every
    image keeps as much); ``mask_total_variation``; ``gate``, the mean share that is blurred."""
    pixels = masks.flatten(1)
    return {
        "mask_mean": float(pixels.mean()),
        "mask_std": float(pixels.std(dim=1, correction=0).mean()),
        "mask_spread": float(pixels.mean(dim=1).std(correction=0)),
        "mask_total_variation": float(views.total_variation(masks)),
        "gate": 1 - float(pixels.mean()),
    }
