"""Shards the blocks below S over processes with FSDP2 (``fully_shard``), for learners that do not
fit on one accelerator.

S and everything above it stay whole on every process. The meta step differentiates along directions
over S only, so alignments, estimators and designers need no code for shards. The large part, the
blocks below S with their gradients and Adam's moments, is stored once across all processes.
"""

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
    """Returns the module that runs the model's blocks, and the blocks below S: those before the
    first block that has parameters in S.

    Args:
        model: a model whose first ``nn.ModuleList`` (the outermost one) is its blocks.
        aligned: S. If it has parameters that run before the blocks (an embedding, tied or not), no
            block is below it.
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
    """Shards the blocks below S over all processes, which gather each block when it runs; does
    nothing in a single process.

    All processes must have the same weights before. Gradients of sharded parameters are summed over
    processes in the backward pass, as
    :func:`vpretrain.system.distributed.all_reduce_gradients` does for the others.

    Raises:
        UserError: S begins below the first block, or a block has parameters of several dtypes.
    """
    runs, blocks = below(model, aligned)
    if not blocks:
        message = (
            "S begins below the first block, so that there is nothing to shard; align fewer of "
            "the last blocks"
        )
        raise user_error("learner.shard", message, value=True, accepted="true, with blocks below S")
    for block in blocks:
        if len(kinds := {parameter.dtype for parameter in block.parameters()}) > 1:
            message = (
                "a block whose parameters have several dtypes cannot be sharded; take "
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
    """Returns this process's shard of ``whole`` if ``like`` is sharded, else ``whole`` itself."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def laid_out_moments(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Returns an optimizer's state with its moments sharded as the parameters are.

    Args:
        state: state of an optimizer over these parameters, with whole tensors or shards.
        parameters: the parameters, in the optimizer's order.
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
    """Returns this process's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Context manager in which the first process has every parameter whole, to save the model.

    All processes must enter it together. Parameters do not train inside; on the other processes
    sharded ones are empty.
    """
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
    """Clips the norm of the gradients in place, like ``torch.nn.utils.clip_grad_norm_``, and
    returns it; gradients may be whole or sharded.

    Args:
        parameters: the parameters; whole ones have the same gradient on all processes.
        bound: maximum norm over all of them.
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
    """Returns the sum of the squares of all entries, a float64 scalar."""
    norms = [
        torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32))
        for t in tensors
    ]
    return torch.stack([norm.double().square() for norm in norms]).sum()
