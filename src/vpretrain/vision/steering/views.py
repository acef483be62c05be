"""DINO's tasks: learned global views for the student (eq. 49), and learned targets.

Shapes: G global views, B images, H x W pixels, P prototypes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from vpretrain.method.roles import Task
from vpretrain.system import distributed


class ViewTask(Task):
    """Base class of DINO's tasks; by default views and targets are unchanged."""

    def views(self, plain: Tensor) -> Tensor:
        """Return the global views ``[G, B, 3, H, W]`` of the task from the plain ones.

        Unchanged views are the same tensor object."""
        return plain

    def targets(self, teacher: Tensor) -> Tensor:
        """Return the student's targets ``[G, B, P]`` from the teacher's."""
        return teacher


@dataclass(frozen=True)
class BaselineViews(ViewTask):
    """Unsteered DINO. It has no controls, so it cannot be valued; value a mask of ones instead."""

    def controls(self) -> tuple[Tensor, ...]:
        return ()

    def with_controls(self, controls: tuple[Tensor, ...]) -> BaselineViews:
        return self


@dataclass(frozen=True)
class LearnedViews(ViewTask):
    """Global views that are blurred where the mask is low (eq. 49); local views are unchanged.

    Args:
        mask: ``mu``, ``[G, B, 1, H, W]`` in [0, 1]: 1 keeps a pixel, 0 replaces it with the blurred
            one. Ones give the plain views and zeros the blurred ones, bit for bit.
        blurred: ``[G, B, 3, H, W]``, from :func:`blur`.
    """

    mask: Tensor
    blurred: Tensor

    def controls(self) -> tuple[Tensor, ...]:
        return (self.mask,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> LearnedViews:
        return LearnedViews(controls[0], self.blurred)

    def views(self, plain: Tensor) -> Tensor:
        """Return ``mu v + (1 - mu) Blur(v)``, shaped like ``plain``; gradients flow to the mask."""
        # Exact at mu = 0 and 1: one term is multiplied by 1, the other is zero.
        return self.mask * plain + (1 - self.mask) * self.blurred


@dataclass(frozen=True)
class LearnedTargets(ViewTask):
    """Plain views with learned targets over prototypes, like soft targets over tokens in language.

    Args:
        mass: ``[G, B, P]`` float32 or wider, >= 0. A row sums to the weight of its view, 1 for soft
            targets. This control covers both targets and weights of views or images, because the
            loss is linear in it.
    """

    mass: Tensor

    @classmethod
    def weighted(cls, teacher: Tensor, weights: Tensor) -> LearnedTargets:
        """Weight the rows of the teacher's targets ``[G, B, P]`` by ``[G, B]`` >= 0.

        Weights of mean 1 keep the scale of the loss."""
        return cls(teacher * weights[..., None])

    def controls(self) -> tuple[Tensor, ...]:
        return (self.mass,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> LearnedTargets:
        return LearnedTargets(controls[0])

    def targets(self, teacher: Tensor) -> Tensor:
        return self.mass


def blur(views: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, ``Blur`` of eq. 49, for which the paper gives no width.

    Borders are reflected; gradients flow.

    Args:
        views: ``[..., 3, H, W]`` with at least one dimension before the channels.
        sigma: standard deviation in pixels, > 0; the kernel is truncated at 3 sigma.
    """
    # Reflection padding must be smaller than the image.
    reach = [min(math.ceil(3 * sigma), side - 1) for side in views.shape[-2:]]
    kernel = (2 * reach[0] + 1, 2 * reach[1] + 1)
    return gaussian_blur2d(views.flatten(0, -4), kernel, (sigma, sigma)).view_as(views)


def most_probable(teacher: Tensor, candidates: int | None) -> Tensor:
    """Return the indices ``[..., K]`` of the K largest of ``[..., P]`` targets; None: all P."""
    prototypes = teacher.shape[-1]
    return teacher.topk(min(candidates or prototypes, prototypes), dim=-1).indices


def sparsity(mask: Tensor, keep_ratio: float) -> Tensor:
    """``R_spars`` of eq. 54: squared distance of the mean of ``mu`` from the keep ratio, a scalar.

    Gradients flow. The mean is over the images of all processes, so that a designer can keep more
    of one image and less of another; the paper does not specify this."""
    return (distributed.mean(mask) - keep_ratio) ** 2


def total_variation(mask: Tensor) -> Tensor:
    """``R_tv`` of eq. 54: total variation of masks ``[..., H, W]`` in [0, 1], a scalar in [0, 2].

    The mean absolute difference of vertical neighbours plus that of horizontal neighbours, over all
    processes; gradients flow."""
    down, across = (distributed.mean(torch.diff(mask, dim=dim).abs()) for dim in (-2, -1))
    return down + across
