"""Context managers that change a model's state for a while and then restore it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn


def computing(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Returns autocast to ``dtype``; None: arithmetic in the dtype of the weights."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Seeds the CPU's generator inside the block, and restores its state afterwards.

    Generators of other devices are not touched.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed every accelerator too.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode inside the block; afterwards each module has its previous mode.

    Feedback runs in it, since dropout would advance the random number generators.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Disables gradients of parameters inside the block, so no activations are kept for them."""
    asking = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
