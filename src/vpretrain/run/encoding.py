"""Encoding of a checkpoint's state: tensors by name, and JSON for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vpretrain.system import sharding

State = Any
"""Dictionaries, lists and tuples of tensors, numbers, strings, booleans and None."""


class Tensors(dict[str, Tensor]):
    """Tensors by name; memory shared under several names (tied weights) is stored once."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[Any, str] = {}

    def add(self, name: str, tensor: Tensor) -> str:
        """Adds a tensor, unless its memory is already stored; returns the name it is stored
        under.
        """
        own = sharding.local(tensor)
        place = (own.data_ptr(), own.dtype, tensor.shape, own.stride()) if own.numel() else name
        known = self._names.setdefault(place, name)
        self[known] = tensor
        return known


def encoded(value: Any, at: str, tensors: Tensors) -> Any:
    """Returns the non-tensor part of ``value`` as JSON; adds tensors to ``tensors`` by path.

    Raises:
        TypeError: a value is of a type that a checkpoint cannot hold.
    """
    if isinstance(value, Tensor):
        name = tensors.add(at, value.detach())
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {
            "map": [[key, encoded(item, f"{at}/{key}", tensors)] for key, item in value.items()]
        }
    if isinstance(value, (list, tuple)):
        items = [encoded(item, f"{at}/{place}", tensors) for place, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{at}: a checkpoint cannot hold a {type(value).__name__}")


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverts :func:`encoded`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {key: decoded(item, tensors) for key, item in content}
    items = [decoded(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def copied(state: State) -> State:
    """Returns a deep copy of a state on the CPU; tied weights stay tied."""
    tensors = Tensors()
    rest = encoded(state, "", tensors)
    return decoded(rest, {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()})
