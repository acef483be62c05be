"""Draw the predictions of heads on held-out pictures, before and after a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vpretrain.vision.data.images import Picture
from vpretrain.vision.drawing import class_colours, draw_rows
from vpretrain.vision.evaluation.probes import ProbeSettings, fit
from vpretrain.vision.feedback.features import Encoder, freeze
from vpretrain.vision.feedback.tasks import Depth, DownstreamTask, Segmentation

SHOWN_PICTURES = 8
TRAIN_PICTURES, TRAIN_STEPS = 64, 200
"""Most training pictures and steps of the heads, which are only for drawing, not for scores."""


def draw_predictions(
    task: Segmentation | Depth,
    encoders: Mapping[str, Encoder],
    train: Sequence[Picture],
    held_out: Sequence[Picture],
    settings: ProbeSettings,
    path: Path,
) -> None:
    """Write a PNG of held-out pictures, their labels (or depth), and each encoder's predictions.

    Args:
        task: the task that is predicted.
        encoders: encoders by their names in the drawing.
        train: training pictures of the heads; the first :data:`TRAIN_PICTURES` are used.
        held_out: pictures to draw; the first :data:`SHOWN_PICTURES` are used.
        settings: training of the heads, as in the probe.
        path: file to write.
    """
    usable = [picture for picture in train if task.has(picture)][:TRAIN_PICTURES]
    shown = [picture for picture in held_out if task.has(picture)][:SHOWN_PICTURES]
    size, steps = min(settings.batch_size, len(usable)), min(settings.steps, TRAIN_STEPS)
    settings = settings.model_copy(update={"batch_size": size, "steps": steps})
    targets = task.targets(shown)
    rows = {"picture": [picture.pixels / 255 for picture in shown], "label": _drawn(task, targets)}
    for name, encoder in encoders.items():
        head = fit(task, freeze(encoder, usable), settings, seed=0)
        with torch.no_grad():
            outputs = head(freeze(encoder, shown).features, shown[0].size).cpu()
        rows[name] = _drawn(task, outputs.argmax(dim=1) if outputs.ndim == 4 else outputs)
    title = f"{task.name} of held-out pictures, by heads that saw {len(usable)} labelled ones"
    draw_rows(rows, path, title=title)


def drawable(tasks: Sequence[DownstreamTask]) -> Segmentation | Depth | None:
    """Return the first task with a prediction at every pixel; None if there is none."""
    return next((task for task in tasks if isinstance(task, Segmentation | Depth)), None)


def _drawn(task: Segmentation | Depth, values: Tensor) -> list[Tensor]:
    if isinstance(task, Segmentation):
        return [class_colours(labels) for labels in values]
    return [metres[None] / task.valid_metres[1] for metres in values.float()]
