"""Crops chosen by value: the learner trains on the most valuable of several augmentations.

The value of a picture's views is ``<u, grad_S L_b>``, where ``L_b`` is DINO's loss on them alone:
how fast the feedback loss falls along ``u`` when the learner descends on them. The candidates of a
picture are valued exactly, without a backward pass over the learner.

Shapes: F feedback batches, m candidates, G global views, B images, P prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vpretrain.method.reliability import correlation
from vpretrain.method.roles import DirectedValue, Metrics
from vpretrain.method.selection import Selected, Selector
from vpretrain.method.simple import BaselineDesigner
from vpretrain.system import distributed
from vpretrain.system.contexts import evaluating
from vpretrain.system.sampling import seed_of
from vpretrain.vision.data.crops import Crops
from vpretrain.vision.data.stream import ImageBatch
from vpretrain.vision.dino.learner import Context, DinoLearner
from vpretrain.vision.steering.arms import ARMS, DINO, Site, VisionArm
from vpretrain.vision.steering.views import LearnedTargets


def picture_values(targets: Tensor, gradient: Tensor) -> Tensor:
    """Return the value ``[B]`` of each picture's views from ``[G, B, P]`` targets.

    ``gradient`` is ``dV/d targets`` of the mean loss over pictures."""
    return targets.shape[1] * (gradient * targets).sum(dim=(0, 2))


class CropSelector(Selector[ImageBatch, Context]):
    """Gives every picture the most valuable of several candidate sets of views.

    The first candidate has the stream's own views.

    Args:
        learner: the learner whose loss is valued.
        candidates: m, at least 2.
    """

    draws = 1

    def __init__(self, learner: DinoLearner, candidates: int) -> None:
        self.learner, self.candidates = learner, candidates

    def values(self, contexts: Sequence[Context], value_of: DirectedValue[Context]) -> Tensor:
        """Return the values ``[F, m, B]`` under each feedback batch."""
        # Copies, so that what a context caches (such as the student's graph) is freed with them.
        values = [_values_of(replace(context), value_of) for context in contexts]
        return torch.stack(values, dim=1)

    def select(
        self,
        drawn: Sequence[ImageBatch],
        value_of: DirectedValue[Context],
        *,
        meta_step: bool,
        used: bool,
    ) -> Selected[ImageBatch]:
        batches, figures = [], []
        for batch in drawn:
            with torch.no_grad():
                contexts = [self.learner.forward(each) for each in self.cuts(batch)]
            with evaluating(self.learner.model):
                values = self.values(contexts, value_of)
            chosen = values.mean(dim=0).argmax(dim=0)
            batches.append(replace(batch, views=gathered(contexts, chosen)))
            figures.append(self.figures(values, chosen))
        mean = {key: sum(each[key] for each in figures) / len(figures) for key in figures[0]}
        return Selected(tuple(batches), distributed.averaged(mean))

    def cuts(self, batch: ImageBatch) -> list[ImageBatch]:
        """Return the batch with m different seeds of its views, its own first."""
        others = range(1, self.candidates)
        return [batch, *(replace(batch, seed=seed_of(f"{batch.seed}/{at}")) for at in others)]

    def figures(self, values: Tensor, chosen: Tensor) -> Metrics:
        """Return metrics of the choice.

        ``value_kept``: mean value of the chosen candidates. ``value_drawn``: mean value of all
        candidates, the expectation without a choice. With several feedback batches also ``gain``,
        the difference of the two cross-fitted over halves of these batches, and ``agreement``, the
        correlation between the halves."""
        mean = values.mean(dim=0)
        taken = mean.gather(0, chosen[None])[0]
        metrics = {"value_kept": float(taken.mean()), "value_drawn": float(mean.mean())}
        if len(values) == 1:
            return metrics
        halves = values[0::2].mean(dim=0), values[1::2].mean(dim=0)
        gains = [
            float((other.gather(0, one.argmax(0)[None])[0] - other.mean(0)).mean())
            for one, other in (halves, halves[::-1])
        ]
        return metrics | {"gain": sum(gains) / 2, "agreement": correlation(*halves)}


def _values_of(context: Context, value_of: DirectedValue[Context]) -> Tensor:
    """Return the values ``[F, B]`` of one candidate."""
    targets = context.teacher_targets
    # Linear in its targets, the loss becomes this process's part of the mean over all pictures.
    estimates = value_of.each(context, LearnedTargets(targets / context.batch.world))
    return torch.stack([picture_values(targets, each.gradient[0]) for each in estimates])


def gathered(contexts: Sequence[Context], chosen: Tensor) -> Crops:
    """Gather the views of the chosen candidates; ``chosen`` is an index ``[B]`` into contexts."""
    rows = torch.arange(len(chosen))

    def pick(views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(torch.stack(list(views))[chosen.to(views[0].device), :, rows].unbind(1))

    local = [context.local_views for context in contexts if context.local_views is not None]
    return Crops(pick([c.global_views for c in contexts]), pick(local) if local else ())


class PlainOnChosen(BaselineDesigner[Context, LearnedTargets]):
    """Unsteered DINO on the crops that a selector chooses."""

    uses_feedback = True


@ARMS.declare(
    "chosen_crops",
    "DINO: of several crops of each picture the one that the examples value most (not from the "
    "paper)",
)
class ChosenCropsArm(VisionArm):
    learner_kinds: ClassVar[tuple[str, ...]] = (DINO,)

    candidates: Annotated[int, Field(ge=2)] = 4
    """Candidate sets of views per picture, of which the most valuable is used."""

    def build(self, site: Site) -> PlainOnChosen:
        designer = PlainOnChosen(site.surface())
        designer.selector = CropSelector(site.learner, self.candidates)
        return designer
