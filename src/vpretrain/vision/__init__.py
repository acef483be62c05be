"""The vision modality: DINO and I-JEPA with learned views, learned targets and weights."""

from vpretrain.vision.modality import Vision

__all__ = ["Vision"]
