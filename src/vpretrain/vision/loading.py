"""Load vision models from a folder or the hub, or make them with random weights.

Models are in training mode."""

from __future__ import annotations

from typing import Any

import torch

from vpretrain.models import loading
from vpretrain.models.loading import VISION


def load_model(location: str, *, dtype: torch.dtype, attention: str) -> Any:
    """Load a pretrained vision model; see :func:`vpretrain.models.loading.load_model`."""
    return loading.load_model(VISION, location, dtype=dtype, attention=attention).train()


def new_model(
    config: dict[str, Any], *, dtype: torch.dtype, attention: str, where: str = "learner.config"
) -> Any:
    """Make a vision model with random weights; see :func:`vpretrain.models.loading.new_model`."""
    return loading.new_model(VISION, config, where, dtype=dtype, attention=attention).train()
