"""Draw pictures side by side in a PNG.

Matplotlib, which takes a second to load, is imported where something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vpretrain.vision.data.images import IGNORE

_INCHES = 0.9  # side of each picture


def draw_rows(rows: Mapping[str, Sequence[Tensor]], path: Path, *, title: str) -> None:
    """Write a PNG of named rows of pictures.

    Args:
        rows: pictures by row name, ``[3, H, W]`` or ``[1, H, W]`` in [0, 1]; as many in every row.
        path: file to write; its folder is made.
        title: title above the rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
    """Colour classes ``[H, W]`` as ``[3, H, W]`` in [0, 1]; pixels without a label are black."""
    from matplotlib import colormaps

    colours = torch.tensor(colormaps["tab20"].colors)  # type: ignore[attr-defined]
    shown = colours[labels % len(colours)] * (labels != IGNORE)[..., None]
    return shown.permute(2, 0, 1)
