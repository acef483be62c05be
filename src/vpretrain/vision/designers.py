"""The task designers of vision, one class an arm; the training loop never asks which one it has.

Fixed ones hear no feedback: ``Plain``, ``ConstantMask``, ``RandomMasks``, ``UniformSmoothing``. ``Exact`` hears the exact
values of a surface that the loss is linear in (DINO's targets, weights of views or of patches) and follows a rule
(:mod:`vpretrain.vision.rules`). The one that learns masks is in :mod:`vpretrain.vision.learned`.

Shapes: G global views, B images, P prototypes, H x W pixels, N images that a network looks at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from vpretrain.contracts import Appraise
from vpretrain.reliability import Reliability
from vpretrain.rules import standardised
from vpretrain.vision import dino, ijepa, views
from vpretrain.vision.blocks import BlockMasks
from vpretrain.vision.ijepa import IJepaTask
from vpretrain.vision.rules import Rule
from vpretrain.vision.views import LearnedTargets, LearnedViews, PlainViews


class Surface(Protocol):
    """Where a mask enters a learner's task. The mask is the first control of the tasks that come from here."""

    def plain(self, context: Any) -> Any:
        """The task without steering."""
        ...

    def valued_plain(self, context: Any) -> Any:
        """The same with controls, so that it can be appraised."""
        ...

    def images(self, context: Any) -> Tensor:
        """``[N, 3, H, W]``, normalised: what masks are for."""
        ...

    def task(self, context: Any, masks: Tensor) -> Any:
        """The task under masks ``[N, 1, H, W]`` in [0, 1]; gradients flow to them."""
        ...

    def part(self, context: Any, images: int) -> Any:
        """The context of the first images of the batch alone."""
        ...


class ViewMasks:
    """DINO's global views: kept where the mask is 1, blurred where it is 0 (eq. 49).

    Args:
        sigma: of the blur, in pixels.
        local_views_in_value: as the learner has it.
    """

    def __init__(self, sigma: float, *, local_views_in_value: bool) -> None:
        self.sigma, self.local_views_in_value = sigma, local_views_in_value
        self._blurred: tuple[dino.Context, Tensor] | None = None

    def plain(self, context: dino.Context) -> PlainViews:
        """Plain views."""
        return PlainViews()

    def valued_plain(self, context: dino.Context) -> LearnedTargets | LearnedViews:
        """Plain views, valued as masks are.

        Through the teacher's own targets, which needs no pass below S; or, where a mask's value lacks the pairs with local
        views, through a mask of ones, whose value lacks them too.
        """
        if self.local_views_in_value:
            return LearnedTargets(context.teacher_targets)
        images = self.images(context)
        return self.task(context, images.new_ones(len(images), 1, *images.shape[-2:]))

    def images(self, context: dino.Context) -> Tensor:
        """The global views, one after the other."""
        return context.global_views.flatten(0, 1)

    def task(self, context: dino.Context, masks: Tensor) -> LearnedViews:
        """Learned views."""
        if self._blurred is None or self._blurred[0] is not context:  # once a batch, not once a task
            self._blurred = context, views.blur(context.global_views, self.sigma)
        return LearnedViews(masks.unflatten(0, context.global_views.shape[:2]), self._blurred[1])

    def part(self, context: dino.Context, images: int) -> dino.Context:
        """Their views."""
        local = None if context.local_views is None else context.local_views[:, :images]
        return dino.Context(context.batch, context.global_views[:, :images], local, context.learner)


class ContextMasks:
    """I-JEPA's context: how much of each patch the encoder sees."""

    def plain(self, context: ijepa.IJepaContext) -> IJepaTask:
        """The whole context."""
        return ijepa.plain(context)

    def valued_plain(self, context: ijepa.IJepaContext) -> IJepaTask:
        """The same: it has controls."""
        return ijepa.plain(context)

    def images(self, context: ijepa.IJepaContext) -> Tensor:
        """The pictures."""
        return context.pixels

    def task(self, context: ijepa.IJepaContext, masks: Tensor) -> IJepaTask:
        """The mean of the mask over each patch says how much of it is seen."""
        seen = functional.adaptive_avg_pool2d(masks, context.grid).flatten(1)
        return MaskedContext(ijepa.plain(context).weights, seen)

    def part(self, context: ijepa.IJepaContext, images: int) -> ijepa.IJepaContext:
        """Their patches."""
        blocks = BlockMasks(context.blocks.context[:images], context.blocks.targets[:images])
        tokens, contents, answers = (each[:images] for each in (context.tokens, context.contents, context.answers))
        return ijepa.IJepaContext(context.pixels[:images], context.grid, blocks, tokens, contents, answers)


class MaskedContext(IJepaTask):
    """An I-JEPA task of which the context mask alone is steered."""

    def controls(self) -> tuple[Tensor, ...]:
        """The mask."""
        return (self.context_mask,)

    def with_controls(self, controls: tuple[Tensor, ...]) -> MaskedContext:
        """Another mask."""
        (mask,) = controls
        # The learner takes the weights for a control too: nothing of them reaches the mask, but there is a way to it.
        return MaskedContext(self.weights.detach() + 0 * mask.sum(), mask)


@dataclass
class Plain:
    """A designer that hears no feedback and keeps no state: self-supervised learning as it always was, the baseline.

    Args:
        surface: of the learner.
    """

    surface: Surface
    listens = False

    def plain(self, context: Any) -> Any:
        """The task without steering."""
        return self.surface.plain(context)

    def construct(self, context: Any, appraise: Appraise) -> Any:
        """The same."""
        return self.plain(context)

    def learn(self, context: Any, appraise: Appraise) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


@dataclass
class ConstantMask(Plain):
    """The same blur everywhere (a control: what is left of learned views without the learning).

    Args:
        keep_ratio: the mask's only value, in (0, 1].
    """

    keep_ratio: float

    def construct(self, context: Any, appraise: Appraise) -> Any:
        """Views under a constant mask."""
        images = self.surface.images(context)
        return self.surface.task(context, images.new_full((len(images), 1, *images.shape[-2:]), self.keep_ratio))


@dataclass
class RandomMasks(Plain):
    """Smooth random masks, fresh at every step (a control: blur of the same mean in places that mean nothing).

    Smooth noise is brought to ranks u, uniform in (0, 1) within an image, and ``mu = u ** (1 / keep_ratio - 1)``: every mask
    has the mean ``keep_ratio``, and none is even unless all is kept.

    Args:
        keep_ratio: the mean of every mask, in (0, 1].
        grain: side in pixels of the grid that the noise is drawn on; bilinear in between.
        seed: of the noise, which has a generator of its own.
    """

    keep_ratio: float
    grain: int
    seed: int
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def construct(self, context: Any, appraise: Appraise) -> Any:
        """Views under fresh masks."""
        images = self.surface.images(context)
        height, width = images.shape[-2:]
        return self.surface.task(context, self.masks(len(images), (height, width)).to(images))

    def masks(self, count: int, size: tuple[int, int]) -> Tensor:
        """``[count, 1, H, W]`` float32 in [0, 1], on the CPU."""
        grid = [max(2, math.ceil(side / self.grain)) for side in size]
        noise = torch.randn(count, 1, *grid, generator=self.generator)
        smooth = functional.interpolate(noise, size, mode="bilinear", align_corners=False).flatten(1)
        # Where the coarse grid ends the noise is constant: the order of equals is drawn too, not read off their places.
        smooth = smooth + 1e-4 * torch.rand(smooth.shape, generator=self.generator)
        ranks = (smooth.argsort(dim=1).argsort(dim=1) + 0.5) / smooth.shape[1]
        return (ranks ** (1 / self.keep_ratio - 1)).view(count, 1, *size)

    def state_dict(self) -> dict[str, Any]:
        """Where the noise is."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.generator.set_state(state["generator"])


@dataclass
class UniformSmoothing(Plain):
    """A constant share of the targets' mass, spread evenly over the candidates (a control of the paper's Table 5).

    Args:
        candidates: K, the teacher's most probable prototypes; None: all.
        gate: the share, in [0, 1].
    """

    candidates: int | None
    gate: float

    def construct(self, context: dino.Context, appraise: Appraise) -> LearnedTargets:
        """The teacher's targets, smoothed."""
        teacher = context.teacher_targets
        ids = teacher.topk(min(self.candidates or teacher.shape[-1], teacher.shape[-1]), dim=-1).indices
        even = torch.zeros_like(teacher).scatter(-1, ids, 1 / ids.shape[-1])
        return LearnedTargets((1 - self.gate) * teacher + self.gate * even)


@dataclass
class Exact:
    """A designer that asks for the exact values of every learner batch, and so needs no network (ours).

    Gain is cross-fitted: tasks made from one half of the feedback are valued by the other, which random feedback cannot
    fool.

    Args:
        rule: what follows from the values; the learner's loss is linear in its surface.
        surface: of the learner, for the plain task.
        reliability: how values shrink.
    """

    rule: Rule
    surface: Surface
    reliability: Reliability
    _heard: tuple[Any, Tensor] | None = field(default=None, init=False, repr=False)
    listens = True

    def plain(self, context: Any) -> Any:
        """The task without steering."""
        self._heard = None
        return self.surface.plain(context)

    def construct(self, context: Any, appraise: Appraise) -> Any:
        """The task that the values under the latest feedback ask for."""
        if self._heard is None or self._heard[0] is not context:
            self._heard = context, appraise(context, self.rule.probe(context)).gradient[0]
        (_, gradient), self._heard = self._heard, None
        return self.shape(context, self.rule.values(context, gradient))

    def shape(self, context: Any, values: Tensor) -> Any:
        """The task from values in the units of the loss."""
        return self.rule.task(context, self.reliability.factor * standardised(values))

    def learn(self, context: Any, appraise: Appraise) -> dict[str, float]:
        """Updates the reliability; returns how good the tasks are that it would make."""
        probe = self.rule.probe(context)
        gradients = [each.gradient[0] for each in appraise.each(context, probe)]
        self.reliability.hear([self.rule.values(context, gradient) for gradient in gradients])
        self._heard = context, torch.stack(gradients).mean(dim=0)  # construct needs just these
        halves = [torch.stack(part).mean(dim=0) for part in (gradients[0::2], gradients[1::2])]
        plain = probe.controls()[0]
        proposals = [self.shape(context, self.rule.values(context, half)).controls()[0] for half in halves]
        gains = [float(((p - plain) * g).sum()) for p, g in zip(proposals, reversed(halves), strict=True)]
        # Half of what moved: mass that has left where it was, or weight, as a share of all.
        moved = float((proposals[0] - plain).abs().sum() / (2 * plain.sum()))
        return {
            "gain": sum(gains) / 2,
            "value_plain": float((plain * sum(halves)).sum() / 2),
            "gate": moved,
            **self.reliability.metrics(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The running agreement."""
        return self.reliability.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the running agreement."""
        self.reliability.load_state_dict(dict(state))
