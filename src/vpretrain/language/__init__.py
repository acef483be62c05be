"""The language modality: next-token prediction with soft targets and token weights."""

from vpretrain.language.modality import Language

__all__ = ["Language"]
