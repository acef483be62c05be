"""Load vision models from a folder or the hub, or make them with random weights.

Models are in training mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ImageProcessingMixin
from transformers.utils import IMAGE_PROCESSOR_NAME

from vpretrain.models import loading
from vpretrain.models.loading import VISION
from vpretrain.system.files import write_json


def load_model(location: str, *, dtype: torch.dtype, attention: str) -> Any:
    """Load a pretrained vision model; see :func:`vpretrain.models.loading.load_model`."""
    return loading.load_model(VISION, location, dtype=dtype, attention=attention).train()


def new_model(
    config: dict[str, Any], *, dtype: torch.dtype, attention: str, where: str = "learner.config"
) -> Any:
    """Make a vision model with random weights; see :func:`vpretrain.models.loading.new_model`."""
    return loading.new_model(VISION, config, where, dtype=dtype, attention=attention).train()


def image_processor(location: str) -> dict[str, Any]:
    """Return the settings of a checkpoint's image processor, such as ``image_mean``.

    Empty if it has none, or cannot be reached."""
    try:
        options = loading.reach(location)
        settings, _ = ImageProcessingMixin.get_image_processor_dict(location, **options)
    except Exception:  # no such file, no network: loading the model reports the latter
        return {}
    return settings


def save_image_processor(
    location: str, folder: Path, *, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Write a checkpoint's image processor, if it has one, into the folder of a model made from it.

    ``mean`` and ``std`` are those that the model was trained with."""
    if settings := image_processor(location):
        settings |= {"image_mean": list(mean), "image_std": list(std)}
        write_json(folder / IMAGE_PROCESSOR_NAME, settings)
