"""DINO's tasks: what becomes of the global views that the student sees (eq. 49), and of the targets
that the teacher sets.

Shapes: G global views, B images, H x W pixels a side, P prototypes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from vpretrain.method.roles import Task
from vpretrain.system import distributed


class ViewTask(Task):
    """A task as DINO takes it; what a task does not shape stays as it is."""

    def views(self, plain: Tensor) -> Tensor:
        """The global views to be seen, from the plain ones: ``[G, B, 3, H, W]``; the very same
        tensor if unchanged."""
        return plain

    def targets(self, teacher: Tensor) -> Tensor:
        """What the student is to match, from the teacher's targets: ``[G, B, P]``."""
        return teacher


@dataclass(frozen=True)
class BaselineViews(ViewTask):
    """DINO as it is. Without controls it costs nothing and has no value: value a mask of ones."""

    def controls(self) -> tuple[Tensor, ...]:
        return ()

    def with_controls(self, controls: tuple[Tensor, ...]) -> BaselineViews:
        return self


@dataclass(frozen=True)
class LearnedViews(ViewTask):
    """Global views that keep what the mask keeps and are blurred elsewhere (eq. 49); local views
    stay as they are.

    Args:
        mask: ``mu``, ``[G, B, 1, H, W]`` in [0, 1]: 1 keeps a pixel, 0 replaces it with the blurred
            one. Ones give the plain views bit for bit, zeros the blurred ones.
        blurred: ``[G, B, 3, H, W]``, from :func:`blur`.
    """

    mask: Tensor
    blurred: Tensor

    def controls(self) -> tuple[Tensor, ...]:
        return (self.mask,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> LearnedViews:
        return LearnedViews(controls[0], self.blurred)

    def views(self, plain: Tensor) -> Tensor:
        """``mu v + (1 - mu) Blur(v)``, like ``plain``; gradients flow to the mask."""
        # Exact at both ends: one product is by 1, and the other adds a zero.
        return self.mask * plain + (1 - self.mask) * self.blurred


@dataclass(frozen=True)
class LearnedTargets(ViewTask):
    """Plain views with other targets than the teacher's own: over prototypes as language is over
    tokens.

    Args:
        mass: ``[G, B, P]`` float32 or wider, >= 0. A row sums to the weight of its view: 1 for soft
            targets. One control covers both surfaces (targets, and weights of views or images),
            since the loss is linear in it either way.
    """

    mass: Tensor

    @classmethod
    def weighted(cls, teacher: Tensor, weights: Tensor) -> LearnedTargets:
        """The teacher's targets ``[G, B, P]``, each row times its weight, ``[G, B]`` >= 0 (mean 1
        keeps the loss's scale)."""
        return cls(teacher * weights[..., None])

    def controls(self) -> tuple[Tensor, ...]:
        return (self.mass,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> LearnedTargets:
        return LearnedTargets(controls[0])

    def targets(self, teacher: Tensor) -> Tensor:
        return self.mass


def blur(views: Tensor, sigma: float) -> Tensor:
    """A fixed Gaussian blur, ``Blur`` of eq. 49, which the paper gives no width for; borders are
    mirrored, gradients flow.

    Args:
        views: ``[..., 3, H, W]`` with at least one dimension before the channels.
        sigma: standard deviation in pixels, > 0; the kernel is cut at 3 sigma.
    """
    # A mirror cannot show more than the image holds.
    reach = [min(math.ceil(3 * sigma), side - 1) for side in views.shape[-2:]]
    kernel = (2 * reach[0] + 1, 2 * reach[1] + 1)
    return gaussian_blur2d(views.flatten(0, -4), kernel, (sigma, sigma)).view_as(views)


def most_probable(teacher: Tensor, candidates: int | None) -> Tensor:
    """int64 ``[..., K]``: the teacher's K most probable prototypes of ``[..., P]``; None: all."""
    prototypes = teacher.shape[-1]
    return teacher.topk(min(candidates or prototypes, prototypes), dim=-1).indices


def sparsity(mask: Tensor, keep_ratio: float) -> Tensor:
    """``R_spars`` of eq. 54: the squared distance of the mean of ``mu`` over the whole batch from
    the keep ratio; a scalar; gradients flow.

    The mean is over all images, so that a designer may keep more of one and less of another; the
    paper does not say."""
    return (distributed.mean(mask) - keep_ratio) ** 2


def total_variation(mask: Tensor) -> Tensor:
    """``R_tv`` of eq. 54: mean absolute difference of vertical neighbours plus that of horizontal
    ones, of ``[..., H, W]`` in [0, 1]; a scalar in [0, 2]; gradients flow."""
    down, across = (distributed.mean(torch.diff(mask, dim=dim).abs()) for dim in (-2, -1))
    return down + across
