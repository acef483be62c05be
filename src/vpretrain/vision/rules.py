"""Rules: from what a linear surface is worth to the task that is set. No rule hears feedback itself.

The loss is linear in DINO's targets and in I-JEPA's weights, so their values do not depend on the task they are taken at.
Shapes: G global views, B images, P prototypes, N = G B rows, K candidates; M target blocks of n patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vpretrain.rules import anchored, tilted
from vpretrain.vision import dino, ijepa
from vpretrain.vision.ijepa import IJepaTask
from vpretrain.vision.views import LearnedTargets


class Rule(Protocol):
    """A way from values to a task; the linear surface is the first control of the tasks here."""

    def probe(self, context: Any) -> Any:
        """The plain task with its controls: what values are taken at."""
        ...

    def values(self, context: Any, gradient: Tensor) -> Tensor:
        """What the choices are worth, in the units of the loss, from ``dV/d control``."""
        ...

    def task(self, context: Any, values: Tensor) -> Any:
        """The task for :meth:`values` in standard deviations over the batch; zeros give the plain one bit for bit."""
        ...


@dataclass(frozen=True)
class AnchoredTargets:
    """DINO's targets by the KL-anchored rule, the teacher's distribution q as the anchor.

    Mass moves to prototypes that are worth more and that the teacher finds possible: ``r ~ q exp(z)`` over the candidates,
    behind a gate that opens with the gain ``E_r z - E_q z``. What q has on other prototypes stays.

    Args:
        candidates: K, the teacher's most probable prototypes; None: all.
        temperature: tau > 0, in standard deviations of the value.
        clip: bound on the tilt.
        gate_max: in [0, 1].
    """

    candidates: int | None = None
    temperature: float = 1.0
    clip: float = 2.0
    gate_max: float = 0.5

    def probe(self, context: dino.Context) -> LearnedTargets:
        """The teacher's own targets."""
        return LearnedTargets(context.teacher_targets)

    def values(self, context: dino.Context, gradient: Tensor) -> Tensor:
        """``[N, K]``, each row about its mean: a row's level is the worth of its view, not of a target."""
        found = gradient.flatten(0, 1).gather(1, self._ids(context))
        return found - found.mean(dim=1, keepdim=True)

    def task(self, context: dino.Context, values: Tensor) -> LearnedTargets:
        """Targets whose rows sum to 1, as the teacher's do."""
        teacher, ids = context.teacher_targets.flatten(0, 1), self._ids(context)
        q = teacher.gather(1, ids)
        within = q.sum(dim=1, keepdim=True)
        share = q / within
        bound = self.clip * self.temperature
        # The plain choice is the teacher's distribution as a whole: it is worth its mean, and r puts nothing on it.
        own = (share * values.clamp(-bound, bound)).sum(dim=1, keepdim=True)
        log_p = torch.cat([torch.full_like(own, -torch.inf), share.clamp_min(torch.finfo(q.dtype).tiny).log()], dim=1)
        proposal, gate = anchored(
            torch.cat([own, values], dim=1), log_p,
            temperature=self.temperature, clip=self.clip, gate_max=self.gate_max,
        )  # fmt: skip
        mixed = (1 - gate[:, None]) * q + gate[:, None] * within * proposal[:, 1:]
        return LearnedTargets(teacher.scatter(1, ids, mixed).view_as(context.teacher_targets))

    def _ids(self, context: dino.Context) -> Tensor:
        teacher = context.teacher_targets.flatten(0, 1)
        return teacher.topk(min(self.candidates or teacher.shape[1], teacher.shape[1]), dim=1).indices


@dataclass(frozen=True)
class ViewWeights:
    """The teacher's targets, views counting by what their target is worth: ``w = 1 + c clip(s - mean, +-3)``, >= 0, mean 1.

    Args:
        tilt: ``c`` >= 0, weight per standard deviation of the value.
    """

    tilt: float = 0.4

    def probe(self, context: dino.Context) -> LearnedTargets:
        """The teacher's own targets."""
        return LearnedTargets(context.teacher_targets)

    def values(self, context: dino.Context, gradient: Tensor) -> Tensor:
        """``[G, B]``, centred: what each global view of each image is worth as it is."""
        worth = (gradient * context.teacher_targets).sum(dim=-1)
        return worth - worth.mean()

    def task(self, context: dino.Context, values: Tensor) -> LearnedTargets:
        """Rows of targets that sum to the weight of their view."""
        return LearnedTargets.weighted(context.teacher_targets, tilted(values, self.tilt))


@dataclass(frozen=True)
class PatchWeights:
    """I-JEPA's target patches, counting by their value: ``w = 1 + c clip(s - mean, +-3)``, >= 0, mean 1.

    Args:
        tilt: ``c`` >= 0, weight per standard deviation of the value.
    """

    tilt: float = 0.4

    def probe(self, context: ijepa.IJepaContext) -> IJepaTask:
        """Every patch counting alike."""
        return ijepa.plain(context)

    def values(self, context: ijepa.IJepaContext, gradient: Tensor) -> Tensor:
        """``[B, M, n]``, centred."""
        return gradient - gradient.mean()

    def task(self, context: ijepa.IJepaContext, values: Tensor) -> IJepaTask:
        """Weighted target patches, the whole context seen."""
        return IJepaTask(tilted(values, self.tilt), ijepa.plain(context).context_mask)
