"""Save and load the part of a model's state that a run can change."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state without frozen parameters (those below adapters), as references.

    On resuming, the frozen parameters come from building the model from its recipe.
    """
    frozen = _frozen(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of :func:`trained_state`, or a whole state.

    Raises:
        RuntimeError: the state lacks a tensor that is not frozen, or has one that the model lacks.
    """
    result = model.load_state_dict(dict(state), strict=False)
    if missing := sorted({*result.missing_keys} - _frozen(model)):
        raise RuntimeError(f"missing from the state of {type(model).__name__}: {missing}")
    if result.unexpected_keys:
        raise RuntimeError(f"{type(model).__name__} does not have {result.unexpected_keys}")


def _frozen(model: nn.Module) -> set[str]:
    """Return the names of frozen parameters, a tied one under each of its names."""
    return {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
