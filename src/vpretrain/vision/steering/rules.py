"""Rules that turn values of a linear surface into a task (:class:`vpretrain.method.exact.Rule`).

The loss is linear in DINO's targets and in I-JEPA's weights, so their values do not depend on the
task at which they are computed. Shapes: G global views, B images, P prototypes, N = G B rows, K
candidates; M target blocks of n patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from vpretrain.method.exact import ExactDesigner, Rule
from vpretrain.method.roles import Bounds
from vpretrain.method.rules import anchored, tilted
from vpretrain.vision.dino import learner as dino
from vpretrain.vision.ijepa import learner as ijepa
from vpretrain.vision.ijepa.learner import IJepaTask
from vpretrain.vision.steering.arms import ARMS, DINO, IJEPA, CandidatesArm, Site, TiltArm
from vpretrain.vision.steering.views import BaselineViews, LearnedTargets, most_probable


class DinoRule(Rule[dino.Context, LearnedTargets, dino.ViewTask]):
    """A rule over DINO's targets; the probe has the teacher's own targets."""

    def baseline_task(self, context: dino.Context) -> BaselineViews:
        return BaselineViews()

    def probe(self, context: dino.Context) -> LearnedTargets:
        return LearnedTargets(context.teacher_targets)


@dataclass(frozen=True)
class AnchoredTargets(DinoRule):
    """DINO's targets by the KL-anchored rule, with the teacher's distribution q as the anchor.

    Mass moves to prototypes of higher value that the teacher finds plausible: ``r ~ q exp(z)`` over
    the candidates, mixed in by a gate that opens with the gain ``E_r z - E_q z``. The mass of q on
    other prototypes is unchanged.

    The settings are described in :class:`ClosedFormArm`."""

    candidates: int | None = None
    temperature: float = 1.0
    clip: float = 2.0
    gate_max: float = 0.5

    @property
    def bounds(self) -> Bounds:
        return {"gate": (0.0, self.gate_max)}

    def values(self, probe: LearnedTargets, gradient: Tensor) -> Tensor:
        """Return values ``[N, K]``, centred per row: a row's mean is the value of the view."""
        values = gradient.flatten(0, 1).gather(1, self._ids(probe))
        return values - values.mean(dim=1, keepdim=True)

    def task(self, probe: LearnedTargets, values: Tensor) -> LearnedTargets:
        teacher, ids = probe.mass.flatten(0, 1), self._ids(probe)
        q = teacher.gather(1, ids)
        within = q.sum(dim=1, keepdim=True)
        fraction = q / within
        bound = self.clip * self.temperature
        # The baseline option is the teacher's whole distribution: its value is the mean under q,
        # and r has no mass on it.
        own = (fraction * values.clamp(-bound, bound)).sum(dim=1, keepdim=True)
        log_p = fraction.clamp_min(torch.finfo(q.dtype).tiny).log()
        proposal, gate = anchored(
            torch.cat([own, values], dim=1),
            torch.cat([torch.full_like(own, -torch.inf), log_p], dim=1),
            temperature=self.temperature,
            clip=self.clip,
            gate_max=self.gate_max,
        )
        mixed = (1 - gate[:, None]) * q + gate[:, None] * within * proposal[:, 1:]
        return LearnedTargets(teacher.scatter(1, ids, mixed).view_as(probe.mass))

    def _ids(self, probe: LearnedTargets) -> Tensor:
        return most_probable(probe.mass.flatten(0, 1), self.candidates)


@ARMS.declare(
    "closed_form",
    "DINO: part of each target goes to prototypes of higher value, by a fixed rule (not from the "
    "paper)",
)
class ClosedFormArm(CandidatesArm):
    gate_max: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Largest fraction of a target's mass that can leave the teacher's distribution."""
    temperature: PositiveFloat = 1.0
    """Temperature tau of the anchored rule, in standard deviations of the value."""
    clip: PositiveFloat = 2.0
    """Bound on the tilt of the anchored rule: values are clipped at ``clip * temperature``."""

    def build(self, site: Site) -> ExactDesigner:
        rule = AnchoredTargets(self.candidates, self.temperature, self.clip, self.gate_max)
        return ExactDesigner(rule, site.reliability)


@dataclass(frozen=True)
class ViewWeights(DinoRule):
    """The teacher's targets with views weighted by value: ``w = 1 + tilt clip(s, +-3)``, >= 0."""

    tilt: float = 0.4
    weighted = True

    def values(self, probe: LearnedTargets, gradient: Tensor) -> Tensor:
        """Return the value ``[G, B]`` of each global view under the teacher's targets."""
        return (gradient * probe.mass).sum(dim=-1)

    def task(self, probe: LearnedTargets, values: Tensor) -> LearnedTargets:
        return LearnedTargets.weighted(probe.mass, tilted(values, self.tilt))


@ARMS.declare("view_weights", "DINO: views weighted by value to the examples (not from the paper)")
class ViewWeightsArm(TiltArm):
    learner_kinds = (DINO,)

    def build(self, site: Site) -> ExactDesigner:
        return ExactDesigner(ViewWeights(self.tilt), site.reliability)


@dataclass(frozen=True)
class PatchWeights(Rule[ijepa.IJepaContext, IJepaTask, IJepaTask]):
    """I-JEPA's target patches weighted by value: ``w = 1 + tilt clip(s, +-3)``, >= 0."""

    tilt: float = 0.4
    weighted = True

    def baseline_task(self, context: ijepa.IJepaContext) -> IJepaTask:
        return ijepa.baseline_task(context)

    def probe(self, context: ijepa.IJepaContext) -> IJepaTask:
        return ijepa.baseline_task(context)

    def values(self, probe: IJepaTask, gradient: Tensor) -> Tensor:
        return gradient

    def task(self, probe: IJepaTask, values: Tensor) -> IJepaTask:
        return IJepaTask(tilted(values, self.tilt), probe.context_mask)


@ARMS.declare(
    "patch_weights", "I-JEPA: patches weighted by value to the examples (not from the paper)"
)
class PatchWeightsArm(TiltArm):
    learner_kinds = (IJEPA,)

    def build(self, site: Site) -> ExactDesigner:
        return ExactDesigner(PatchWeights(self.tilt), site.reliability)
