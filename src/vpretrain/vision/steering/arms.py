"""What the arms of vision have in common. Each designer is declared beside its class, in a file of
this folder; all of them are imported with the package."""

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
    """What a designer may read of the run that it is built for.

    Args:
        learner_kind: ``dino`` or ``ijepa``.
        local_views_in_value: as the learner has it (DINO).
        device: of its network.
        seed: of its first weights and its noise.
        reliability: how its values shrink.
        learner: what it steers; None while a recipe is only checked.
    """

    learner_kind: str
    local_views_in_value: bool
    device: torch.device
    seed: int
    reliability: Reliability
    learner: Any = None

    def surface(self, blur_sigma: float = 4.0) -> Masks[Any, Any]:
        """Where choices enter the learner's task; the blur is that of DINO's views, in pixels."""
        if self.learner_kind == DINO:
            return ViewMasks(blur_sigma, local_views_in_value=self.local_views_in_value)
        return ContextMasks()


class VisionArm(DesignerSection):
    """The keys of one kind of designer, and how it is built."""

    learner_kinds: ClassVar[tuple[str, ...]] = (DINO, IJEPA)
    """Learners that have something which it could steer."""

    @property
    def most_candidates(self) -> int:
        """Prototypes that a target is spread over; 0: as many as there are."""
        return 0

    def build(self, site: Site) -> Designer:
        raise NotImplementedError

    def trained(
        self, learner: Learner[ImageBatch, ContextT, TaskT], feedback: Feedback[Any]
    ) -> Learner[ImageBatch, ContextT, TaskT]:
        """The learner as the arm trains it."""
        return learner


class CandidatesArm(VisionArm):
    """Of designers that spread DINO's targets over prototypes."""

    learner_kinds = (DINO,)

    candidates: PositiveInt | None = None
    """The teacher's most probable prototypes, among which mass may move; null: all."""

    @property
    def most_candidates(self) -> int:
        return self.candidates or 0


class TiltArm(VisionArm):
    """Of designers that weight parts of a picture."""

    tilt: NonNegativeFloat = 0.4
    """Weight per standard deviation of the value."""


class MaskArm(VisionArm):
    """Of designers that mask."""

    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Mean of the mask; 1 leaves views as they are (not for ``ascent``)."""
    blur_sigma: PositiveFloat = 4.0
    """Standard deviation in pixels of the blur that a mask lets through (eq. 49; the paper gives
    none)."""


ARMS: Arms[VisionArm] = Arms(VisionArm, baseline="plain", default="ascent")
"""The designers of vision, and the arms that are made of them."""
DEMO = ("plain", "ascent", "reversed_feedback", "uneven_masks")
"""Those that ``vpretrain demo vision`` shows."""


def check_kind(section: VisionArm, learner_kind: str, arm: str) -> None:
    """Raises a UserError for a designer that the learner has no use for."""
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
