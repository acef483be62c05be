"""Weights that no step can be taken with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from vpretrain.system.errors import user_error

LARGEST = 1e18
"""Of a weight: the square of a larger one is infinite in float32, and so is any norm."""


def unusable(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """``name: value`` of the first tensor that holds a number which is not finite, or larger than
    :data:`LARGEST`; None where all can be used."""
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.itemsize < 2 or not tensor.numel():
            continue
        lowest, highest = map(float, tensor.detach().aminmax())  # NaN comes through
        worst = max(-lowest, highest)
        if not worst <= LARGEST:
            return f"{name}: {worst:g}"
    return None


def refuse_unusable(
    tensors: Iterable[tuple[str, Tensor]], place: str | Path, where: str = "learner.model"
) -> None:
    """Raises UserError for what :func:`unusable` finds.

    Args:
        tensors: by name.
        place: file or folder that they come from.
        where: what named it: a dotted recipe key, or the file itself.
    """
    if broken := unusable(tensors):
        message = (
            f"a weight in {place} is not finite, or beyond {LARGEST:g}: the file is damaged, or "
            "the run that wrote it diverged; take another model, or an earlier checkpoint of it"
        )
        raise user_error(where, message, value=broken, accepted="finite weights")
