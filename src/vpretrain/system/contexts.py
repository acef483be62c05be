"""The states that a model is put into for a while, and comes back from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn


def computing(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Products in ``dtype`` inside the block (autocast); None: in the dtype of the weights."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Inside the block the CPU's generator runs from ``seed``; afterwards it is where it was. Other
    devices' are left alone."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed every accelerator too.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each module gets back the mode it had. Feedback must not
    touch the RNG."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the block these parameters ask for no gradients, so that no activations are kept for
    them."""
    asking = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
