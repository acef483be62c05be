"""A second device on a machine that has none: its tensors are CPU tensors in a wrapper, and whatever
mixes it with the CPU fails by name.

    with elsewhere.device() as device:
        torch.ones(3).to(device) + torch.ones(3)  # WrongDevice: aten.add.Tensor ...

It knows nothing of kernels, streams or memory, and computes what the CPU computes. torch's hook for
devices that are written in Python is experimental; once called it holds for the whole process, so
that tests of it run in a process of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

NAME = "elsewhere"
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
"""What may read one device and write another."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""What may be told places on the CPU, as on any accelerator."""


class WrongDevice(RuntimeError):
    """An operation met tensors of both devices."""


class Elsewhere(Tensor):
    """A tensor of the device; ``here`` has its values."""

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def __repr__(self) -> str:
        return f"{NAME}({self.here})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs or {})
        if func is Tensor.tolist:  # as an accelerator's does, it copies
            return args[0].cpu().tolist()
        if func is Tensor.data_ptr:
            return args[0].here.data_ptr()
        with torch._C.DisableTorchFunctionSubclass():  # results keep their own type
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
    """By its parts: fused kernels are chosen in C++ by a list of devices that ours is not in."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(
            attn_mask.logical_not(), float("-inf")
        )
    math = aten._scaled_dot_product_attention_math
    return math(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)[0]


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation, computed by the CPU."""
    flat, spec = tree_flatten((args, kwargs))
    ours = any(isinstance(each, Elsewhere) for each in flat)
    if func not in MOVES | INDEXED:
        for each in flat:
            # A number may come from anywhere, as on any accelerator.
            if isinstance(each, Tensor) and not isinstance(each, Elsewhere) and each.dim() and ours:
                raise WrongDevice(f"{func}: {tuple(each.shape)} on the CPU, the others {NAME}")
    puts = func in (aten.index_put.default, aten.index_put_.default)
    if puts and len({isinstance(each, Elsewhere) for each in (args[0], args[2])}) == 2:
        raise WrongDevice(f"{func}: tensor and values are not on one device")
    if func is aten.index.Tensor and not isinstance(args[0], Elsewhere):
        raise WrongDevice(f"{func}: a tensor on the CPU is indexed by one {NAME}")
    stays = _is_ours(kwargs["device"]) if kwargs.get("device") is not None else ours
    here_args, here_kwargs = tree_unflatten(
        [each.here if isinstance(each, Elsewhere) else each for each in flat], spec
    )
    if _is_ours(here_kwargs.get("device")):
        here_kwargs["device"] = torch.device("cpu")
    with _disable_current_modes():
        result = func(*here_args, **here_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not stays:
        return result
    result = tree_map_only(
        Tensor, lambda each: each if isinstance(each, Elsewhere) else Elsewhere(each), result
    )
    return return_and_correct_aliasing(func, args, kwargs, result)


class _Factories(TorchDispatchMode):
    """Tensors that are made on the device, or moved there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_ours(kwargs.get("device")):
            return _computed(func, args, kwargs)
        return func(*args, **kwargs)


class _Literals(TorchFunctionMode):
    """``torch.tensor([...], device=...)``, which is made below the reach of the other mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_ours(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            like, values = args
            made = torch.tensor(values, dtype=kwargs.get("dtype", like.dtype))
            return made.to(like.device)
        return func(*args, **kwargs)


class _Backend(backend_registration._DummyBackendModule):
    """What ``torch.elsewhere`` is."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def current_stream(self, device=None):
        return _STREAM

    def stream(self, stream):
        return nullcontext()


class _Stream:
    """All work is done when a call returns."""

    device_type = NAME

    def synchronize(self):
        pass


_STREAM = _Stream()


@contextmanager
def device() -> Iterator[torch.device]:
    """The device; modules can be moved there inside."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Factories(), _Literals():
            yield torch.device(NAME, 0)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
