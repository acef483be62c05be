"""Learners that do not fit one accelerator: blocks below S, shared out among the processes by FSDP2
(``fully_shard``).

S itself stays whole on every process, and so does what runs above it. The meta step asks for
derivatives along a direction over S and for nothing below, so that every alignment, estimator and
designer is the same code on the same tensors, shards or not; what is large, the blocks below with
their gradients and Adam's moments, is held once among all processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vpretrain.system import distributed
from vpretrain.system.errors import user_error


def below(
    model: nn.Module, aligned: Mapping[str, nn.Parameter]
) -> tuple[nn.Module, list[nn.Module]]:
    """The module that runs the model's blocks, and those of them that come before the first one
    with a part of S.

    Args:
        model: with a list of blocks; of several the outermost first one is meant.
        aligned: S. Where it has a part that runs before the blocks (an embedding, tied or not),
            there are none.
    """
    lists = (
        (name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)
    )
    name, blocks = next(lists, ("", nn.ModuleList()))
    runs = model.get_submodule(name.rpartition(".")[0])
    ours = {id(parameter) for parameter in aligned.values()}

    def holds(module: nn.Module, recurse: bool = True) -> bool:
        return any(id(parameter) in ours for parameter in module.parameters(recurse))

    before = takewhile(lambda child: child is not blocks, runs.children())
    if holds(runs, recurse=False) or any(holds(child) for child in before):
        return runs, []
    return runs, list(takewhile(lambda block: not holds(block), blocks))


def shard_blocks(model: nn.Module, aligned: Mapping[str, nn.Parameter]) -> None:
    """Shares the blocks below S out among processes; each gathers a block where it runs. Nothing
    for a process on its own.

    Every process holds the same weights before. Gradients of what is shared out arrive added up
    over processes, as :func:`vpretrain.system.distributed.all_reduce_gradients` leaves those of the
    rest.

    Raises:
        UserError: S begins below the first block, or a block has parameters of several dtypes.
    """
    runs, blocks = below(model, aligned)
    if not blocks:
        message = (
            "S begins below the first block, so that there is nothing to share out; align "
            "fewer of the last blocks"
        )
        raise user_error("learner.shard", message, value=True, accepted="true, with blocks below S")
    for block in blocks:
        if len(kinds := {parameter.dtype for parameter in block.parameters()}) > 1:
            message = (
                "a block whose parameters are of several dtypes cannot be shared out; take "
                "learner.dtype: float32"
            )
            raise user_error(
                "learner.shard",
                message,
                value=", ".join(map(str, kinds)),
                accepted="one dtype in a block",
            )
    if distributed.world() == 1:
        return
    device = next(blocks[0].parameters()).device.type
    mesh = DeviceMesh(device, torch.arange(distributed.world()))
    shared = {parameter for block in blocks for parameter in block.parameters()}
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # Nothing here changes hidden states in place, which is what it warns of where a model returns a
    # view.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    # With a module around the blocks the next one is gathered while this one runs; it has no
    # parameters of its own.
    fully_shard(
        runs, mesh=mesh, reshard_after_forward=True, ignored_params={*runs.parameters()} - shared
    )
    for module in (runs, *blocks):
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)  # a sum over processes, as everywhere here
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def laid_out(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor as another one lies: this process's shard of it where that is sharded, otherwise
    itself."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def laid_out_moments(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimizer's state whose moments lie as the parameters do.

    Args:
        state: of an optimizer over these parameters, with whole tensors or shards.
        parameters: in the optimizer's order.
    """
    moments = {
        number: {
            name: laid_out(moment, parameters[number]) if moment.ndim else moment
            for name, moment in of_one.items()
        }
        for number, of_one in state["state"].items()
    }
    return {**state, "state": moments}


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside the block every parameter of the model is whole (and does not train), so that it can
    be saved.

    All processes come here together; what the first one does inside needs none of the others."""
    shards = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor)
    ]
    for module, name, parameter in shards:
        gathered = parameter.full_tensor()  # type: ignore[union-attr]  # nn.Parameter hides what it is
        module._parameters[name] = nn.Parameter(
            gathered if distributed.rank() == 0 else gathered[:0], requires_grad=False
        )
    try:
        yield
    finally:
        for module, name, parameter in shards:
            module._parameters[name] = parameter


@torch.no_grad()
def clip(parameters: Sequence[Tensor], bound: float) -> float:
    """``torch.nn.utils.clip_grad_norm_`` over whole gradients and shards: bounds their norm in
    place, and returns it.

    Args:
        parameters: whole ones have the same gradient on all processes.
        bound: on the norm over all of them.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    if not shards:
        return float(nn.utils.clip_grad_norm_(parameters, bound))
    rest = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    squares = distributed.total(_squares(shards)) + _squares(rest)
    norm = float(squares.sqrt())
    factor = min(1.0, bound / (norm + 1e-6))
    if factor < 1:
        for gradient in (*shards, *rest):
            gradient.mul_(factor)
    return norm


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all entries, a float64 scalar."""
    norms = [
        torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32))
        for t in tensors
    ]
    return torch.stack([norm.double().square() for norm in norms]).sum()
