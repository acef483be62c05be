"""The designer that learns: a network looks at an image and climbs the value of the mask that it emits (Appendix G.2).

Shapes: N images that the network looks at, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.contracts import Appraise, Estimate, detached
from vpretrain.reliability import Reliability
from vpretrain.rules import standardised
from vpretrain.vision import views
from vpretrain.vision.designers import Surface


@dataclass(frozen=True)
class MaskPrices:
    """``L_meta = -V + l_s R_spars + l_tv R_tv`` (eq. 54).

    Args:
        keep_ratio: what the mask's mean is drawn to, in (0, 1).
        sparsity, total_variation: ``l_s`` and ``l_tv``, >= 0.
        raw: whether they are in the units of the value (the paper's), or in standard deviations of ``dV/dmu`` (ours: the
            scales of loss and direction drop out).
    """

    keep_ratio: float
    sparsity: float
    total_variation: float
    raw: bool


class Ascent:
    """The paper's designer: masks from a network, which ascends their value.

    ``dV/d phi = (dV/dmu) dmu/d phi``: the cotangent of the mask carries everything that learner and feedback have to say, so
    there is no graph through the learner here. The next task is made by the network that has learned, detached.

    Args:
        network: ``phi``: masks ``[N, 1, H, W]`` of images ``[N, 3, H, W]``.
        surface: where masks enter.
        prices: see :class:`MaskPrices`.
        learning_rate: of Adam; at 0 the network stays as it is.
        reliability: how far feedback batches agree on ``dV/dmu``, by which it shrinks: noise leaves the prices alone.
        updates: steps of the network a meta step, at least 1. Those after the first follow the same ``dV/dmu``, a little out
            of date.
        meta_images: images of the batch that are valued, at least 1; None: all. A mask is worth what it does to its own
            image, so that a part of a large batch says enough.
    """

    listens = True

    def __init__(
        self, network: nn.Module, surface: Surface, prices: MaskPrices, *, learning_rate: float,
        reliability: Reliability, updates: int = 1, meta_images: int | None = None,
    ) -> None:  # fmt: skip
        self.network, self.surface, self.prices = network, surface, prices
        self.reliability, self.updates, self.meta_images = reliability, updates, meta_images
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    def propose(self, context: Any) -> Any:
        """The task as a function of ``phi``, with its graph."""
        return self.surface.task(context, self.network(self.surface.images(context)))

    def construct(self, context: Any, appraise: Appraise) -> Any:
        """The task for the learner's step; no graph."""
        with torch.no_grad():
            return self.propose(context)

    def plain(self, context: Any) -> Any:
        """The task without steering."""
        return self.surface.plain(context)

    def learn(self, context: Any, appraise: Appraise) -> dict[str, float]:
        """``updates`` steps up the value of the masks."""
        if self.meta_images is not None:
            context = self.surface.part(context, self.meta_images)
        images = self.surface.images(context)
        masks = self.network(images)
        task = self.surface.task(context, masks)
        heard = appraise.each(context, detached(task))
        gradients = [each.gradient[0] for each in heard]
        self.reliability.hear(gradients)
        gradient = torch.stack(gradients).mean(dim=0)
        plain = _value(appraise.each(context, self.surface.valued_plain(context)))
        metrics = {
            "gain": _value(heard) - plain,
            "value_plain": plain,
            **self.reliability.metrics(),
            **mask_metrics(masks.detach()),
        }
        for update in range(self.updates):
            if update:
                masks = self.network(images)
                task = self.surface.task(context, masks)
            self._descend(self._loss(task.controls()[0], masks, gradient))
        return metrics

    def _loss(self, control: Tensor, masks: Tensor, gradient: Tensor) -> Tensor:
        """``L_meta`` up to a constant: the value is replaced with its tangent at the present mask."""
        prices = self.prices
        value = (gradient * control).sum() if prices.raw else (standardised(gradient) * control).mean()
        sparsity = views.sparsity(masks, prices.keep_ratio)
        return (
            prices.sparsity * sparsity
            + prices.total_variation * views.total_variation(masks)
            - self.reliability.factor * value
        )

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and agreement."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reliability": self.reliability.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reliability.load_state_dict(state["reliability"])


def mask_metrics(masks: Tensor) -> dict[str, float]:
    """How masks ``[N, 1, H, W]`` look.

    ``mask_mean``; ``mask_std``, over the pixels of an image, averaged over images (0: each mask has collapsed to a
    constant); ``mask_spread``, standard deviation of the images' means (0: every image keeps as much); ``mask_total_variation``;
    ``gate``, the mean share that is blurred.
    """
    pixels = masks.flatten(1)
    return {
        "mask_mean": float(pixels.mean()),
        "mask_std": float(pixels.std(dim=1, correction=0).mean()),
        "mask_spread": float(pixels.mean(dim=1).std(correction=0)),
        "mask_total_variation": float(views.total_variation(masks)),
        "gate": 1 - float(pixels.mean()),
    }


def _value(heard: list[Estimate]) -> float:
    return sum(float(each.value) for each in heard) / len(heard)
