"""Base sections of the vision arms.

Each designer is declared next to its class, in a file of this folder; all files are imported with
the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from vpretrain.config.arms import Arms, DesignerSection
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import ContextT, Designer, Feedback, Learner, TaskT
from vpretrain.system.errors import user_error
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.steering.surfaces import ContextMasks, Masks, ViewMasks

DINO, IJEPA = "dino", "ijepa"


@dataclass(frozen=True)
class Site:
    """Properties of the run that a designer is built for.

    Args:
        learner_kind: ``dino`` or ``ijepa``.
        local_views_in_value: the learner's setting (DINO).
        device: device of the designer's network.
        seed: seed of the designer's initial weights and noise.
        reliability: how values are shrunk.
        learner: the learner; None while a recipe is only checked.
    """

    learner_kind: str
    local_views_in_value: bool
    device: torch.device
    seed: int
    reliability: Reliability
    learner: Any = None

    def surface(self, blur_sigma: float = 4.0) -> Masks[Any, Any]:
        """Return the learner's mask surface; ``blur_sigma`` is for DINO's views, in pixels."""
        if self.learner_kind == DINO:
            return ViewMasks(blur_sigma, local_views_in_value=self.local_views_in_value)
        return ContextMasks(1 if self.learner is None else self.learner.backbone.patch_size)


class VisionArm(DesignerSection):
    """Recipe keys of one kind of designer, and how it is built."""

    learner_kinds: ClassVar[tuple[str, ...]] = (DINO, IJEPA)
    """Kinds of learners that the designer supports."""

    @property
    def most_candidates(self) -> int:
        """Number of prototypes that a target is spread over; 0: no fixed number."""
        return 0

    @property
    def most_images(self) -> int:
        """Number of images of a batch that a meta step values; 0: no fixed number."""
        return 0

    def build(self, site: Site) -> Designer:
        raise NotImplementedError

    def trained(
        self, learner: Learner[ImageBatch, ContextT, TaskT], feedback: Feedback[Any]
    ) -> Learner[ImageBatch, ContextT, TaskT]:
        """Return the learner that the arm trains, by default unchanged."""
        return learner


class CandidatesArm(VisionArm):
    """Keys of designers that spread DINO's targets over prototypes."""

    learner_kinds = (DINO,)

    candidates: PositiveInt | None = None
    """Number of the teacher's most probable prototypes among which mass can move; null: all."""

    @property
    def most_candidates(self) -> int:
        return self.candidates or 0


class TiltArm(VisionArm):
    """Keys of designers that weight views or patches."""

    tilt: NonNegativeFloat = 0.4
    """Change of the weight per standard deviation of the value."""


class MaskArm(VisionArm):
    """Keys of designers of masks."""

    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Mean of the mask; 1 keeps views unchanged (not allowed for ``ascent``)."""
    blur_sigma: PositiveFloat = 4.0
    """Standard deviation in pixels of the blur where the mask is 0 (DINO; eq. 49, for which the
    paper gives no width)."""


ARMS: Arms[VisionArm] = Arms(VisionArm, baseline="plain", default="ascent")
"""The designers of vision, and the arms built from them."""
DEMO = ("plain", "ascent", "reversed_feedback", "uneven_masks")
"""Arms that ``vpretrain demo vision`` compares."""


def check_kind(section: VisionArm, learner_kind: str, arm: str) -> None:
    """Raise a UserError if the designer does not support this kind of learner."""
    if learner_kind in section.learner_kinds:
        return
    fitting = [
        name
        for name, each in ARMS.all.items()
        if each.designer is None or learner_kind in ARMS.kinds[each.designer].learner_kinds
    ]
    raise user_error(
        "designer.kind" if ARMS.named(arm).designer is None else "arm",
        f"a learner of kind {learner_kind} has nothing that this could steer",
        value=section.kind,
        accepted=", ".join(fitting),
    )
