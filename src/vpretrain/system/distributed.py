"""Data parallelism under ``torchrun``; in a single process every function here does nothing.

Every process holds the whole learner and designer and its own part of every batch; sums and means
over the batch are taken over all processes. One rule makes this compose: **a value is global, its
gradient is this process's part**, and gradients are summed once, before the optimizer's step
(:func:`all_reduce_gradients`). A loss can thus be any function of sums and means over the batch,
and N processes take the same step as one process with the whole batch.

The model is not wrapped (DDP), because the learner calls its parts separately, and several times a
step. Summing the gradients once a step is equivalent, and costs one communication however many
batches are accumulated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from vpretrain.system.errors import Fault, NonFinite, UserError, user_error

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20
"""What is sent at a time: large enough to fill a network, small enough to be copied."""
PATIENCE = timedelta(hours=1)
"""How long processes wait for each other: the first may make a checkpoint or read data before the
rest go on."""


@contextmanager
def process_group() -> Iterator[None]:
    """Within this block the processes that ``torchrun`` started are one run; a process on its own
    is left alone.

    Each takes the accelerator of its number on the machine. NCCL carries what is on accelerators,
    gloo all else.

    Raises:
        UserError: there are fewer accelerators than processes, or nothing says where processes
            meet.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    world, number = processes(), int(os.environ["RANK"])
    if torch.cuda.is_available():
        here, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if here > there:
            message = (
                "this machine has fewer accelerators than processes; start one process for each"
            )
            raise user_error(
                "torchrun --nproc-per-node", message, value=here, accepted=f"1 to {there}"
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=_store(world, number),
        rank=number,
        world_size=world,
        timeout=PATIENCE,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def processes() -> int:
    """How many a launcher started, also outside of :func:`process_group` and :func:`alone`; 1
    without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return processes() > 1


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes, also outside of
    :func:`process_group`."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def alone() -> Iterator[None]:
    """Context manager in which this process communicates with no other: sums over all processes are
    its own values."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


_alone = False


def rank() -> int:
    """Which process this is, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


_CPU = torch.device("cpu")


def _group(device: torch.device = _CPU) -> dist.ProcessGroup | None:
    """The group that carries what lies on a device; None: the default group.

    Another library may have started the default group for accelerators alone (``cuda:nccl``). What
    lies on the CPU then goes through a group of gloo, which all processes make at the first use.
    """
    if device.type != "cpu" or "cpu:" in dist.get_backend_config():
        return None
    default = dist.group.WORLD
    if _made[0] is not default:
        _made[:] = default, dist.new_group(backend="gloo", timeout=PATIENCE)
    return _made[1]


_made: list[dist.ProcessGroup | None] = [None, None]
"""The default group, and ours beside it."""


def barrier() -> None:
    """Returns when all processes have come here."""
    total(torch.zeros(()))


def in_turn(make: Callable[[], T]) -> T:
    """What ``make`` returns: called by the first process, then by the first of every machine, then
    by the rest.

    So that what one makes on disk is found by those after it. Each is :func:`alone` in its turn.
    What one raises is raised on all (:func:`raise_on_all`)."""
    if world() == 1:
        return make()
    turn = 0 if rank() == 0 else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
    made: list[T] = []
    for now in range(3):
        error = None
        if now == turn:
            made, error = _attempted(make)
        raise_on_all(error)
    return made[0]


def raise_on_all(error: Exception | None) -> None:
    """Raises on every process what any of them has to raise, so that none waits for one that is
    gone; None: nothing went wrong here.

    All raise the same kind, since a :class:`NonFinite` only costs a batch: anything else first."""
    own = error and _sendable(error)
    errors = [each for each in all_gather_object(own) if each is not None]
    if errors:
        told = next((each for each in errors if not isinstance(each, NonFinite)), errors[0])
        raise error if error is not None and type(own) is type(told) else told


def from_first_rank(make: Callable[[], T]) -> T:
    """What ``make`` returns on the first process, :func:`alone`, on all of them; what it
    raises is raised on all."""
    if world() == 1:
        return make()
    made, error = _attempted(make) if rank() == 0 else ([], None)
    made, told = broadcast_object((made, error and _sendable(error)))
    if told is not None:
        raise error or told
    return made[0]


def _attempted(make: Callable[[], T]) -> tuple[list[T], Exception | None]:
    """What ``make`` returns, :func:`alone`, or what it raises."""
    try:
        with alone():
            return [make()], None
    except Exception as error:
        return [], error


def _sendable(error: Exception) -> Exception:
    """The error without what a library may have attached to it; one of a class that is not ours
    becomes a RuntimeError with its message, since other processes may not be able to build it."""
    if isinstance(error, (UserError, Fault)):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    if isinstance(error, OSError):
        return OSError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def broadcast_object(value: T) -> T:
    """The first process's value, on all of them; numbers, strings, lists and dictionaries."""
    if world() == 1:
        return value
    if isinstance(value, float):  # once a step: no pickle
        return summed(value if rank() == 0 else 0.0)  # type: ignore[return-value]
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_group())
    return values[0]


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is True on any process."""
    if world() == 1:
        return list(flags)
    return [count > 0 for count in total(torch.tensor(flags, dtype=torch.float32)).tolist()]


def summed(figure: float) -> float:
    """The sum of a figure over processes."""
    return float(total(torch.tensor(figure, dtype=torch.float64)))


def all_gather_object(value: T) -> list[T]:
    """Every process's value, by rank; likewise."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=_group())
    return values


class _Total(torch.autograd.Function):
    """The sum over processes. Its backward passes the gradient of the sum to this process's
    summand, without communication."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed_up = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_up, group=_group(value.device))
        return summed_up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def total(value: Tensor) -> Tensor:
    """The sum over processes of a tensor of one shape, the same on all of them; gradients flow to
    this one's part."""
    return value if world() == 1 else _Total.apply(value)


def mean(values: Tensor) -> Tensor:
    """The mean over all entries on all processes, a scalar; gradients flow to this one's part.

    Args:
        values: any shape, which may differ between processes.
    """
    if world() == 1:
        return values.mean()
    sums = total(
        torch.stack([values.double().sum(), values.new_tensor(values.numel(), dtype=torch.float64)])
    )
    return (sums[0] / sums[1]).to(values.dtype)


def std(values: Tensor) -> Tensor:
    """The standard deviation (of all, not of a sample) over all entries on all processes; a scalar,
    no gradient."""
    if world() == 1:
        return values.std(correction=0)
    values = values.detach()
    return mean((values.double() - mean(values.double())).square()).sqrt().to(values.dtype)


def logsumexp(values: Tensor) -> Tensor:
    """``log sum exp`` over the first dimension on all processes, keeping it as one; no gradient."""
    here = values.logsumexp(dim=0, keepdim=True)
    if world() == 1:
        return here
    highest = here.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=_group(highest.device))
    return total((here - highest).exp()).log() + highest


def averaged(figures: dict[str, float]) -> dict[str, float]:
    """Each figure's mean over processes; figures that were the same stay so. All have the same
    names in the same order."""
    if world() == 1 or not figures:
        return figures
    sums = total(torch.tensor(list(figures.values()), dtype=torch.float64)) / world()
    return dict(zip(figures, sums.tolist(), strict=True))


@torch.no_grad()
def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Adds the ``.grad`` of parameters up over processes, in place.

    A parameter without a gradient on any process keeps None; without one on some, it counts as zero
    there. Sharded parameters (:mod:`vpretrain.system.sharding`) are skipped, because theirs were
    summed in the backward pass.
    """
    if world() == 1:
        return
    parameters = [p for p in parameters if not isinstance(p, DTensor)]
    there = total(torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32))
    some = [p for p, count in zip(parameters, there.tolist(), strict=True) if count]
    for p in some:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    all_reduce([p.grad for p in some if p.grad is not None])


@torch.no_grad()
def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Adds tensors up over processes, in place."""
    _in_buckets(tensors, lambda b: dist.all_reduce(b, group=_group(b.device)))


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor]) -> None:
    """Overwrites tensors with the first process's values, in place."""
    _in_buckets(tensors, lambda b: dist.broadcast(b, src=0, group=_group(b.device)))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of nested dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _in_buckets(tensors: Sequence[Tensor], send: Callable[[Tensor], Any]) -> None:
    if world() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        send(flat)
        for tensor, piece in zip(
            bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True
        ):
            tensor.copy_(piece.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in groups of one dtype and device that are not much larger than
    :data:`BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        like = not bucket or (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and (
            not like or sum(t.numel() * t.element_size() for t in bucket) >= BUCKET_BYTES
        ):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _store(world: int, number: int) -> dist.Store:
    """Where processes find each other. Each attempt of a restarted run has names of its own: it
    finds no stale addresses."""
    if "MASTER_PORT" not in os.environ:
        message = (
            f"RANK and WORLD_SIZE say that this is one of {world} processes, and nothing "
            "says where they meet"
        )
        raise user_error(
            "MASTER_PORT",
            message,
            accepted="processes that torchrun starts; for one alone, unset RANK",
        )
    # The agent of torchrun serves the store; without one the first process does.
    serves = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(
        os.environ.get("MASTER_ADDR", "localhost"),
        int(os.environ["MASTER_PORT"]),
        world,
        serves,
        timeout=PATIENCE,
        multi_tenant=True,
    )
    return dist.PrefixStore(
        f"vpretrain/attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )
