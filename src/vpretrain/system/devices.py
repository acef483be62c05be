"""Devices of models and batches, and the dtype of their arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache

import torch

log = logging.getLogger(__name__)

SLOW = (
    "warning: learner.dtype: this CPU has no arithmetic in bfloat16 (avx512_bf16, AMX), where its "
    "matrix products take several times as long as in float32; give float32"
)


def device() -> torch.device:
    """Returns the accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def for_kind(figures: Mapping[str, int], kind: str) -> int:
    """Returns the figure for a kind of device (``device.type``).

    Kinds other than ``cpu`` share that of ``cuda``.
    """
    return figures.get(kind, figures["cuda"])


@cache
def autocast_dtype(dtype: str) -> torch.dtype | None:
    """Returns the autocast dtype for ``learner.dtype``; None: no autocast.

    Warns once per process if it is slower on this CPU.
    """
    if dtype != "bfloat16":
        return None
    if device().type == "cpu" and slow_in_bfloat16(torch.cpu.get_capabilities()):
        log.warning(SLOW)
    return torch.bfloat16


def slow_in_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Returns whether a CPU is known to lack bfloat16 arithmetic; False for non-x86 CPUs."""
    return capabilities.get("architecture") == "x86_64" and not any(
        capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")
    )
