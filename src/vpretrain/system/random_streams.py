"""The generators that everything random is drawn from: seeded, saved and restored together."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch

from vpretrain.system import distributed


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch.

    Each process has a seed of its own (dropout is drawn from it); the first has the one of a
    process that is alone."""
    seed += distributed.rank() * 2**16
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators, of every accelerator too."""
    kind, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(numpy.asarray(keys, dtype=numpy.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restores :func:`random_state`; the accelerators' as far as there are as many as there
    were."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype(numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)
