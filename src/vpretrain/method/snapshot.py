"""Snapshots of learner and optimizer: changes made inside a block are undone bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vpretrain.method.roles import Learner
from vpretrain.system.random_streams import random_state, set_random_state


class Snapshot:
    """Copy of learner and optimizer: ``with snapshot():`` undoes what happens inside.

    On leaving the block, parameters, buffers, other learner state, optimizer state and learning
    rates are reset to their values when this object was made; gradients to None; each module's mode
    and the random number generators to their state at the start of the block. All are restored from
    copies, bit for bit, also when the block raises. Takes as much memory as learner and optimizer
    state.

    Args:
        learner: whose model and state are copied.
        optimizer: over its parameters; it must have taken a step already.
    """

    def __init__(self, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
        self.learner, self.model, self.optimizer = learner, learner.model, optimizer
        self.saved = {name: tensor.detach().clone() for name, tensor in self._tensors()}
        self.moments = {parameter: _cloned(state) for parameter, state in optimizer.state.items()}
        self.beside = copy.deepcopy(learner.state_dict())
        self.rates = [group["lr"] for group in optimizer.param_groups]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Undoes what the block did, on leaving it."""
        modes = [(module, module.training) for module in self.model.modules()]
        generators = random_state()
        try:
            yield
        finally:
            self._restore()
            for module, mode in modes:
                module.training = mode
            set_random_state(generators)

    @torch.no_grad()
    def _restore(self) -> None:
        for name, tensor in self._tensors():
            tensor.copy_(self.saved[name])
        self.learner.load_state_dict(self.beside)
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.optimizer.state.update(
            {parameter: _cloned(state) for parameter, state in self.moments.items()}
        )
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()
    }
