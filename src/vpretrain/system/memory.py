"""Detection of failed memory allocations."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an allocation failed, on the CPU (a plain RuntimeError there) or on an
    accelerator.
    """
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
