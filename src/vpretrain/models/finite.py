"""Detect weights that are not finite or too large to train."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from vpretrain.system.errors import user_error

LARGEST = 1e18
"""Largest usable absolute weight; beyond it, sums of squares in a norm soon overflow float32."""


def unusable(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return ``name: value`` of the first tensor with a non-finite or too large value, else None.

    Values above :data:`LARGEST` in magnitude are too large. Tensors that are not floating point, or
    have less than 16 bits, are not checked."""
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.itemsize < 2 or not tensor.numel():
            continue
        lowest, highest = map(float, tensor.detach().aminmax())  # NaN propagates
        worst = max(-lowest, highest)
        if not worst <= LARGEST:
            return f"{name}: {worst:g}"
    return None


def refuse_unusable(
    tensors: Iterable[tuple[str, Tensor]], place: str | Path, where: str = "learner.model"
) -> None:
    """Raise a UserError if a tensor is :func:`unusable`.

    Args:
        tensors: pairs of name and tensor.
        place: file or folder that they come from.
        where: dotted recipe key that named it, or the file itself.
    """
    if broken := unusable(tensors):
        message = (
            f"a weight in {place} is not finite, or beyond {LARGEST:g}: the file is damaged, or "
            "the run that wrote it diverged; take another model, or an earlier checkpoint of it"
        )
        raise user_error(where, message, value=broken, accepted="finite weights")
