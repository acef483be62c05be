"""A picture of what a designer does to views: crops, their masks, and the views that the learner is
shown (eq. 49).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from vpretrain.method.roles import Designer, Learner, ValueFunction
from vpretrain.vision.dino.learner import Context
from vpretrain.vision.steering.surfaces import ViewMasks
from vpretrain.vision.steering.views import LearnedViews

_INCHES = 0.9  # side of one crop


@dataclass(frozen=True)
class Shown:
    """What a designer makes of N crops of H x W pixels.

    Args:
        crops: ``[N, 3, H, W]`` in [0, 1].
        masks: ``[N, 1, H, W]`` in [0, 1]; 1 keeps a pixel, 0 blurs it.
        views: ``[N, 3, H, W]`` in [0, 1], what the learner is shown.
    """

    crops: Tensor
    masks: Tensor
    views: Tensor


@torch.no_grad()
def shown(
    learner: Learner, designer: Designer, batch: Any, *, mean: Sequence[float], std: Sequence[float]
) -> Shown | None:
    """The first global view of each picture in a batch, as the designer steers it; None if it
    steers no views.

    Learner and designer stay as they are, but for a designer that draws its masks: that has drawn
    some more.

    Args:
        learner: whose views they are.
        designer: of the run.
        batch: of the stream.
        mean: that views are normalised with, of R, G, B.
        std: likewise.
    """
    if not isinstance(getattr(designer, "surface", None), ViewMasks):
        return None
    context: Context = learner.forward(batch)
    task = designer.make_task(context, _Silence())
    if not isinstance(task, LearnedViews):
        return None
    plain = context.global_views
    scale, shift = (plain.new_tensor(each).view(3, 1, 1) for each in (std, mean))
    crops, views = (
        (each[0] * scale + shift).clamp(0, 1).float().cpu() for each in (plain, task.views(plain))
    )
    return Shown(crops, task.mask[0].float().cpu(), views)


def draw(found: Shown, path: Path, *, title: str, count: int = 10) -> None:
    """Writes a PNG of three rows (crops, masks, learned views) of the first ``count`` crops.

    Args:
        found: what to draw.
        path: of the file; its folder is made.
        title: above the picture.
        count: columns at most.
    """
    columns = min(count, len(found.crops))
    figure = Figure(figsize=(_INCHES * columns + 0.9, _INCHES * 3 + 0.4), layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    rows = (("crop", found.crops), ("mask", found.masks), ("learned view", found.views))
    for of_row, (name, images) in zip(axes, rows, strict=True):
        for axis, image in zip(of_row, images, strict=False):
            axis.imshow(
                image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
            axis.set_xticks([])
            axis.set_yticks([])
        of_row[0].set_ylabel(name, fontsize=8)
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=120, metadata={"Software": None})


class _Silence(ValueFunction[Any]):
    """Feedback is not heard for a picture: designers of masks do not ask for it when they construct
    a task.
    """

    def __call__(self, context: Any, task: Any) -> NoReturn:
        raise RuntimeError("a designer of masks constructs its task without hearing feedback")

    def each(self, context: Any, task: Any) -> NoReturn:
        """As a call."""
        self(context, task)
