"""Pictures side by side in a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from vpretrain.vision.data.images import IGNORE

_INCHES = 0.9  # side of one picture


def draw_rows(rows: Mapping[str, Sequence[Tensor]], path: Path, *, title: str) -> None:
    """Writes a PNG of rows of pictures, each with its name.

    Args:
        rows: ``[3, H, W]`` or ``[1, H, W]`` in [0, 1]; as many in every row.
        path: of the file; its folder is made.
        title: above them.
    """
    columns = len(next(iter(rows.values())))
    size = (_INCHES * columns + 0.9, _INCHES * len(rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for of_row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(of_row, images, strict=True):
            values = image.permute(1, 2, 0).numpy()
            axis.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        of_row[0].set_ylabel(name, fontsize=8)
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=120, metadata={"Software": None})


def class_colours(labels: Tensor) -> Tensor:
    """``[3, H, W]`` in [0, 1] of classes ``[H, W]``; where there is no label, black."""
    colours = torch.tensor(colormaps["tab20"].colors)  # type: ignore[attr-defined]
    shown = colours[labels % len(colours)] * (labels != IGNORE)[..., None]
    return shown.permute(2, 0, 1)
