"""Draw a designer's effect on views: crops, their masks, and the learned views (eq. 49)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from vpretrain.method.roles import Designer, Learner, ValueFunction
from vpretrain.vision.drawing import draw_rows
from vpretrain.vision.steering.views import LearnedViews

CROPS = 10
"""Most crops that are drawn."""


@dataclass(frozen=True)
class SteeredViews:
    """Crops, their masks and the learned views, all in [0, 1].

    Args:
        crops: ``[N, 3, H, W]``.
        masks: ``[N, 1, H, W]``; 1 keeps a pixel, 0 blurs it.
        views: ``[N, 3, H, W]``, as the learner sees them.
    """

    crops: Tensor
    masks: Tensor
    views: Tensor


@torch.no_grad()
def steered_views(
    learner: Learner, designer: Designer, batch: Any, *, mean: Sequence[float], std: Sequence[float]
) -> SteeredViews | None:
    """Return the first global view of each picture in a batch as the designer steers it.

    None if the designer does not steer views. ``mean`` and ``std`` of R, G, B are those of the
    views' normalisation. Learner and designer are not changed, except for the generator of a
    designer with random masks."""
    context = learner.forward(batch)
    try:
        task = designer.make_task(context, _NoValues())
    except _AskedForValues:  # designers of masks do not need values in make_task
        return None
    if not isinstance(task, LearnedViews):
        return None
    plain = context.global_views
    scale, shift = (plain.new_tensor(each).view(3, 1, 1) for each in (std, mean))
    crops, views = (
        (each[0] * scale + shift).clamp(0, 1).float().cpu() for each in (plain, task.views(plain))
    )
    return SteeredViews(crops, task.mask[0].float().cpu(), views)


def draw(steered: SteeredViews, path: Path, *, title: str) -> None:
    """Write a PNG of three rows (crops, masks, learned views) of the first ``CROPS`` crops."""
    rows = {"crop": steered.crops, "mask": steered.masks, "learned view": steered.views}
    draw_rows({name: list(row[:CROPS]) for name, row in rows.items()}, path, title=title)


class _AskedForValues(Exception):
    """A designer asked for values to make its task."""


class _NoValues(ValueFunction[Any]):
    """Raises when asked for values, which designers of masks do not need to make a task."""

    def __call__(self, context: Any, task: Any) -> NoReturn:
        raise _AskedForValues

    def each(self, context: Any, task: Any) -> NoReturn:
        raise _AskedForValues
