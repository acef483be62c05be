"""Seeds, saves and restores all random number generators together."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch

from vpretrain.system import distributed


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch.

    Each process gets a different seed (for its dropout); the first gets that of a single process.
    """
    seed += distributed.rank() * 2**16
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Returns the state of the generators of Python, NumPy, torch and every accelerator."""
    kind, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(numpy.asarray(keys, dtype=numpy.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restores :func:`random_state`; states of accelerators that are not present are ignored."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype(numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)
