"""What heads predict on held-out pictures, before a run and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
"""A drawing is no score: its heads learn from so many pictures in so many steps at the most."""


def draw_predictions(
    task: Segmentation | Depth,
    encoders: Mapping[str, Encoder],
    train: Sequence[Picture],
    held_out: Sequence[Picture],
    settings: ProbeSettings,
    path: Path,
) -> None:
    """A PNG of held-out pictures, their labels (or depth), and what each encoder's head predicts.

    Args:
        task: which the pictures have targets for.
        encoders: by what they are called in the drawing.
        train: what the heads learn from, as the probe's do.
        held_out: the first :data:`SHOWN_PICTURES` are drawn.
        settings: of the probe.
        path: of the file.
    """
    usable = [picture for picture in train if task.has(picture)][:TRAIN_PICTURES]
    shown = [picture for picture in held_out if task.has(picture)][:SHOWN_PICTURES]
    size, steps = min(settings.batch_size, len(usable)), min(settings.steps, TRAIN_STEPS)
    settings = replace(settings, batch_size=size, steps=steps)
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
    """The first of the tasks that has an answer at every pixel."""
    return next((task for task in tasks if isinstance(task, Segmentation | Depth)), None)


def _drawn(task: Segmentation | Depth, values: Tensor) -> list[Tensor]:
    if isinstance(task, Segmentation):
        return [class_colours(labels) for labels in values]
    return [metres[None] / task.valid_metres[1] for metres in values.float()]
