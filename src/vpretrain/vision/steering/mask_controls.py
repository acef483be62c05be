"""Controls for learned masks.

Their values in random places, and masks that learn from other pictures' values. The gain of learned
masks over these controls is the effect of steering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional

from vpretrain.config.arms import Role
from vpretrain.method.network import NetworkDesigner
from vpretrain.method.roles import (
    Bounds,
    ContextT,
    Designer,
    Estimate,
    Learned,
    State,
    Task,
    TaskT,
    ValueFunction,
)
from vpretrain.system.errors import user_error
from vpretrain.vision.steering.arms import ARMS, Site
from vpretrain.vision.steering.masks import AscentArm
from vpretrain.vision.steering.noise import smooth_ranks


class AfterLearned(Designer[ContextT, TaskT]):
    """A control that wraps the designer of learned masks, which learns as usual."""

    uses_feedback = True

    def __init__(self, learned: NetworkDesigner[ContextT, TaskT]) -> None:
        self.learned = learned

    @property
    def bounds(self) -> Bounds:
        return self.learned.bounds

    def baseline_task(self, context: ContextT) -> TaskT:
        return self.learned.baseline_task(context)

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        return self.learned.make_task(context, value_of)

    def learn(self, context: ContextT, value_of: ValueFunction[ContextT]) -> Learned[TaskT]:
        return self.learned.learn(context, value_of)

    def state_dict(self) -> State:
        return {"learned": self.learned.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.learned.load_state_dict(state["learned"])


class UnevenMasks(AfterLearned[ContextT, TaskT]):
    """Smooth random masks with the values of the learned masks, as the learner sees them.

    At every step, each picture's mask has the histogram of its learned mask, in random places.

    Args:
        learned: designer of the learned masks; only their histograms reach the learner.
        grain: side in pixels of the noise grid; bilinear interpolation in between.
        seed: seed of the noise, which has its own generator.
        patch_size: side in pixels of the squares over which the learner sees the mean of a mask;
            these means are scattered.
    """

    def __init__(
        self,
        learned: NetworkDesigner[ContextT, TaskT],
        grain: int,
        seed: int,
        *,
        patch_size: int = 1,
    ) -> None:
        super().__init__(learned)
        self.grain, self.patch_size = max(1, round(grain / patch_size)), patch_size
        self.generator = torch.Generator().manual_seed(seed)

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        surface = self.learned.surface
        with torch.no_grad():
            masks = self.learned.network(surface.inputs(context))
        masks = functional.avg_pool2d(masks, self.patch_size)
        return surface.task(context, self.scattered(masks))

    def scattered(self, masks: Tensor) -> Tensor:
        """Rearrange the values of masks ``[N, 1, H, W]`` at random within each picture."""
        ranks = smooth_ranks(len(masks), masks.shape[-2:], self.grain, self.generator)
        values = masks.flatten(1).sort(dim=1).values
        return values.gather(1, ranks.to(values.device)).view_as(masks)

    def state_dict(self) -> State:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])


@dataclass
class OtherPictures(ValueFunction[ContextT], Generic[ContextT]):
    """Values whose gradient at each picture's mask is that of another picture's mask.

    The gradients are rolled by one over the pictures of this process.

    Args:
        value_of: the true values.
        picture_dim: dimension of a mask that indexes pictures.

    Raises:
        UserError: on a call, if this process has only one picture.
    """

    value_of: ValueFunction[ContextT]
    picture_dim: int

    @property
    def linear(self) -> bool:
        return self.value_of.linear

    def __call__(self, context: ContextT, task: Task) -> Estimate:
        return self._moved_on(self.value_of(context, task))

    def each(self, context: ContextT, task: Task) -> list[Estimate]:
        return [self._moved_on(estimate) for estimate in self.value_of.each(context, task)]

    def _moved_on(self, estimate: Estimate) -> Estimate:
        count = estimate.gradient[0].shape[self.picture_dim]
        if count < 2:
            raise user_error(
                "data.batch_size",
                "other_pictures takes the values of another picture of the same process, and there "
                "is none: give a larger batch (likewise data.meta_batch_size and "
                "designer.meta_images, where they are set), or fewer processes",
                value=f"{count} picture a process at a meta step",
                accepted="2 or more a process",
            )
        gradients = (gradient.roll(1, dims=self.picture_dim) for gradient in estimate.gradient)
        return Estimate(estimate.value, tuple(gradients))


class OtherPicturesMasks(AfterLearned[ContextT, TaskT]):
    """Masks that learn from the value gradient of another picture of the same process.

    The network can learn what holds for all pictures, but nothing specific to one.

    Args:
        learned: designer of the masks.
        picture_dim: see :class:`OtherPictures`.
    """

    def __init__(self, learned: NetworkDesigner[ContextT, TaskT], picture_dim: int) -> None:
        super().__init__(learned)
        self.picture_dim = picture_dim

    def learn(self, context: ContextT, value_of: ValueFunction[ContextT]) -> Learned[TaskT]:
        """Update the masks along the values of :class:`OtherPictures`; raises its errors."""
        others = OtherPictures(value_of, self.picture_dim)
        return self.learned.learn(context, others)


@ARMS.declare(
    "uneven_masks",
    "control: smooth random masks with the mean and the unevenness of the learned ones",
)
class UnevenMasksArm(AscentArm):
    role: ClassVar[Role] = "control"

    grain: PositiveInt = 16
    """Side in pixels of the grid on which the random places are drawn."""

    def build(self, site: Site) -> UnevenMasks[Any, Any]:  # type: ignore[override]
        patch_size = site.surface().patch_size
        return UnevenMasks(super().build(site), self.grain, site.seed, patch_size=patch_size)


@ARMS.declare(
    "other_pictures",
    "control: masks that are learned from the values of another picture of the batch",
)
class OtherPicturesArm(AscentArm):
    role: ClassVar[Role] = "control"

    def build(self, site: Site) -> OtherPicturesMasks[Any, Any]:  # type: ignore[override]
        return OtherPicturesMasks(super().build(site), site.surface().picture_dim)
