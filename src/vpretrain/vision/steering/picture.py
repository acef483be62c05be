"""A picture of what a designer does to views: crops, their masks, and the views that the learner is
shown (eq. 49)."""

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


@dataclass(frozen=True)
class Shown:
    """Crops ``[N, 3, H, W]``, masks ``[N, 1, H, W]`` (1 keeps a pixel, 0 blurs it) and the views
    that the learner is shown, all in [0, 1]."""

    crops: Tensor
    masks: Tensor
    views: Tensor


@torch.no_grad()
def shown(
    learner: Learner, designer: Designer, batch: Any, *, mean: Sequence[float], std: Sequence[float]
) -> Shown | None:
    """The first global view of each picture in a batch, as the run's designer steers it; None if it
    steers no views. ``mean`` and ``std`` of R, G, B are those that views are normalised with.

    Learner and designer stay as they are, but for a designer that draws its masks."""
    context = learner.forward(batch)
    try:
        task = designer.make_task(context, _NoValues())
    except _AskedForValues:  # only tasks without masks are made of values
        return None
    if not isinstance(task, LearnedViews):
        return None
    plain = context.global_views
    scale, shift = (plain.new_tensor(each).view(3, 1, 1) for each in (std, mean))
    crops, views = (
        (each[0] * scale + shift).clamp(0, 1).float().cpu() for each in (plain, task.views(plain))
    )
    return Shown(crops, task.mask[0].float().cpu(), views)


def draw(shown: Shown, path: Path, *, title: str, count: int = 10) -> None:
    """Writes a PNG of three rows (crops, masks, learned views) of the first ``count`` crops."""
    rows = {"crop": shown.crops, "mask": shown.masks, "learned view": shown.views}
    draw_rows({name: list(row[:count]) for name, row in rows.items()}, path, title=title)


class _AskedForValues(Exception):
    """A designer needs feedback for its task."""


class _NoValues(ValueFunction[Any]):
    """Tells designers that ask for values from those of masks, which make their tasks without."""

    def __call__(self, context: Any, task: Any) -> NoReturn:
        raise _AskedForValues

    def each(self, context: Any, task: Any) -> NoReturn:
        raise _AskedForValues
