"""The designers of vision that use no feedback.

Shapes: G global views, B images, P prototypes, H x W pixels, N inputs of a surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from vpretrain.config.arms import Role
from vpretrain.method.roles import ContextT, TaskT, ValueFunction
from vpretrain.method.simple import BaselineDesigner
from vpretrain.vision.dino import learner as dino
from vpretrain.vision.steering.arms import ARMS, CandidatesArm, MaskArm, Site, VisionArm
from vpretrain.vision.steering.noise import smooth_ranks
from vpretrain.vision.steering.views import LearnedTargets, most_probable


@ARMS.declare("plain", "self-supervised learning as it always was: the baseline")
class PlainArm(VisionArm):
    uses_feedback = False

    def build(self, site: Site) -> BaselineDesigner:
        return BaselineDesigner(site.surface())


@dataclass
class ConstantMask(BaselineDesigner[ContextT, TaskT]):
    """A constant mask ``keep_ratio`` in (0, 1], the same blur everywhere."""

    keep_ratio: float

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        images = self.surface.inputs(context)
        masks = images.new_full((len(images), 1, *images.shape[-2:]), self.keep_ratio)
        return self.surface.task(context, masks)


@ARMS.declare(
    "constant_mask", "control: the keep ratio as a constant mask, the same blur everywhere"
)
class ConstantMaskArm(MaskArm):
    role: ClassVar[Role] = "control"
    uses_feedback = False

    def build(self, site: Site) -> ConstantMask:
        return ConstantMask(site.surface(self.blur_sigma), self.keep_ratio)


@dataclass
class RandomMasks(BaselineDesigner[ContextT, TaskT]):
    """Smooth random masks, drawn anew at every step.

    Smooth noise is converted to ranks u, uniform in (0, 1) within an image, and
    ``mu = u ** (1 / keep_ratio - 1)``. Hence every mask has the mean ``keep_ratio``, and none is
    constant unless everything is kept.

    Args:
        keep_ratio: mean of every mask, in (0, 1].
        grain: side in pixels of the noise grid; bilinear interpolation in between.
        seed: seed of the noise, which has its own generator.
    """

    keep_ratio: float
    grain: int
    seed: int
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def make_task(self, context: ContextT, value_of: ValueFunction[ContextT]) -> TaskT:
        images = self.surface.inputs(context)
        return self.surface.task(context, self.masks(len(images), images.shape[-2:]).to(images))

    def masks(self, count: int, size: Sequence[int]) -> Tensor:
        """Draw masks ``[count, 1, H, W]``, float32 in [0, 1], on the CPU."""
        ranks = smooth_ranks(count, size, self.grain, self.generator)
        return (((ranks + 0.5) / ranks.shape[1]) ** (1 / self.keep_ratio - 1)).view(count, 1, *size)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


@ARMS.declare("random_masks", "control: smooth random masks of the keep ratio, fresh at every step")
class RandomMasksArm(MaskArm):
    role: ClassVar[Role] = "control"
    uses_feedback = False

    grain: PositiveInt = 16
    """Side in pixels of the grid on which the masks' noise is drawn."""

    def build(self, site: Site) -> RandomMasks:
        return RandomMasks(site.surface(self.blur_sigma), self.keep_ratio, self.grain, site.seed)


@dataclass
class UniformSmoothing(BaselineDesigner[dino.Context, dino.ViewTask]):
    """A constant fraction of each target spread evenly over the candidates (control of Table 5).

    Args:
        candidates: number K of the teacher's most probable prototypes; None: all.
        gate: the fraction, in [0, 1].
    """

    candidates: int | None
    gate: float

    def make_task(
        self, context: dino.Context, value_of: ValueFunction[dino.Context]
    ) -> LearnedTargets:
        teacher = context.teacher_targets
        ids = most_probable(teacher, self.candidates)
        even = torch.zeros_like(teacher).scatter(-1, ids, 1 / ids.shape[-1])
        return LearnedTargets((1 - self.gate) * teacher + self.gate * even)


@ARMS.declare(
    "uniform_smoothing",
    "control, DINO: a constant part of every target spread evenly over the prototypes",
)
class UniformSmoothingArm(CandidatesArm):
    role: ClassVar[Role] = "control"
    uses_feedback = False

    control_gate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Constant fraction of each target's mass that is spread evenly."""

    def build(self, site: Site) -> UniformSmoothing:
        return UniformSmoothing(site.surface(), self.candidates, self.control_gate)
