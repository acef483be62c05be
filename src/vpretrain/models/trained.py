"""What of a model a run can change, and so has to keep."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without frozen parameters (those below adapters), as references.

    Whoever goes on builds the model from its recipe first, and has the frozen ones from there.
    """
    frozen = _frozen(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Takes up :func:`trained_state`, or a whole state.

    Raises:
        RuntimeError: something that trains is missing, or there is something that the model lacks.
    """
    result = model.load_state_dict(dict(state), strict=False)
    if missing := sorted({*result.missing_keys} - _frozen(model)):
        raise RuntimeError(f"missing from the state of {type(model).__name__}: {missing}")
    if result.unexpected_keys:
        raise RuntimeError(f"{type(model).__name__} does not have {result.unexpected_keys}")


def _frozen(model: nn.Module) -> set[str]:
    """Names of parameters that do not train, a tied one under each of its names."""
    return {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
