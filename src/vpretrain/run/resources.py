"""Rough estimates of the memory and disk space that a run needs, against what the machine has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from vpretrain.config.recipe import Checkpoint, Recipe
from vpretrain.system.distributed import launched, processes
from vpretrain.system.errors import Problem

_MEMORY_INFO = Path("/proc/meminfo")
_PLAIN = Checkpoint()  # the defaults


def shortages(
    model: nn.Module,
    checkpoint: Checkpoint = _PLAIN,
    folder: Path = Path(),
    *,
    tokens: int = 0,
    followers: int = 0,
) -> list[Problem]:
    """Returns the problems of :func:`memory_shortage` and :func:`disk_shortage`."""
    return [
        *memory_shortage(model, checkpoint, tokens=tokens, followers=followers),
        *disk_shortage(model, checkpoint, folder, followers=followers),
    ]


def memory_shortage(
    model: nn.Module,
    checkpoint: Checkpoint = _PLAIN,
    *,
    tokens: int = 0,
    followers: int = 0,
    shared: Iterable[nn.Module] = (),
) -> list[Problem]:
    """Returns a problem if a run certainly does not fit in memory.

    The estimate is a lower bound, for each process.

    It counts the weights; for trained parameters also the gradient and Adam's two moments; and one
    hidden state per token and block. The memory of arm, feedback and activations within blocks is
    not counted.

    Args:
        model: only sizes and dtypes are read, so it may be on the meta device.
        checkpoint: of the recipe; asynchronous checkpoints hold a copy of what they write.
        tokens: positions of a batch that go through the model at once, over all processes.
        followers: number of further copies of the model (an EMA teacher, a reference).
        shared: sharded blocks (:func:`vpretrain.system.sharding.below`), of which a process holds
            its part. Without a launcher the number of parts is unknown, and they count for nothing.
            The whole weights are a lower bound in any case, since they are loaded before sharding.
    """
    needed = memory_needed(model, checkpoint, tokens=tokens, followers=followers, shared=shared)
    available = available_memory_bytes()
    if available is None or needed <= available:
        return []
    count = sum(p.numel() for p in model.parameters())
    each = f" for each of {processes()} processes" if launched() else ""
    return [
        Problem(
            "memory",
            f"{readable_size(available)} available{each}",
            f"{readable_size(needed)} or more",
            f"weights, gradient and Adam's moments of {count:,} parameters, with the hidden "
            "states of a batch, do not fit; "
            "take a smaller batch, a smaller model, or a larger machine",
        )
    ]


def memory_needed(
    model: nn.Module,
    checkpoint: Checkpoint = _PLAIN,
    *,
    tokens: int = 0,
    followers: int = 0,
    shared: Iterable[nn.Module] = (),
) -> int:
    """Returns the bytes that :func:`memory_shortage` counts; same arguments."""
    every, trained = _bytes(model), _bytes(model, trained=True)
    needed = every * (1 + followers) + 3 * trained + _hidden_states(model, tokens) // processes()
    whole = sum(_bytes(block) + 3 * _bytes(block, trained=True) for block in shared)
    part = whole // processes() if launched() else 0
    needed = max(every, needed - whole + part)
    if checkpoint.asynchronous and not torch.cuda.is_available():
        # The copy that one process writes while training continues; it is in host memory.
        needed += (3 + followers) * trained // processes()
    return needed


def kept_for_backward(model: nn.Module, forward: Callable[[], object]) -> int:
    """Returns the bytes that a forward pass keeps for its backward pass, besides parameters and
    buffers.

    The pass runs once, and nothing is kept meanwhile, so that it needs no more memory than one
    without gradients.
    """
    own = {StorageWeakRef(t.untyped_storage()) for t in (*model.parameters(), *model.buffers())}
    sizes: dict[StorageWeakRef, int] = {}

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if (reference := StorageWeakRef(storage)) not in own:
            sizes[reference] = storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
        forward()
    return sum(sizes.values())


def disk_shortage(
    model: nn.Module,
    checkpoint: Checkpoint = _PLAIN,
    folder: Path = Path(),
    *,
    followers: int = 0,
    checkpoint_bytes: int | None = None,
) -> list[Problem]:
    """Returns a problem if a run's files do not fit on the disk.

    It counts the model folder and ``keep_last`` + 1 checkpoints, including the one being written;
    with ``keep_best``, two more model folders. If the size of a checkpoint is unknown, it is
    estimated as the trained parameters with two moments, and each follower's without moments.

    Args:
        model: as in :func:`memory_shortage`.
        checkpoint: of the recipe.
        folder: on the disk that results are written to; need not exist yet.
        followers: as in :func:`memory_shortage`.
        checkpoint_bytes: the size of one (:func:`vpretrain.run.checkpoint.size`).
    """
    needed = disk_needed(model, checkpoint, followers=followers, checkpoint_bytes=checkpoint_bytes)
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed <= free:
        return []
    return [
        Problem(
            "disk",
            f"{readable_size(free)} free in {there.resolve()}",
            f"{readable_size(needed)} or more",
            "the model and its checkpoints do not fit on this disk; make room, run from a "
            "folder on another, or lower "
            f"checkpoint.keep_last (now {checkpoint.keep_last})",
        )
    ]


def disk_needed(
    model: nn.Module,
    checkpoint: Checkpoint = _PLAIN,
    *,
    followers: int = 0,
    checkpoint_bytes: int | None = None,
) -> int:
    """Returns the bytes that :func:`disk_shortage` counts; same arguments."""
    models = 1 + 2 * (checkpoint.keep_best is not None)
    if checkpoint_bytes is None:
        checkpoint_bytes = (3 + followers) * _bytes(model, trained=True)
    return models * _bytes(model) + (checkpoint.keep_last + 1) * checkpoint_bytes


def _bytes(model: nn.Module, *, trained: bool = False) -> int:
    return sum(
        p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not trained
    )


def _hidden_states(model: nn.Module, tokens: int) -> int:
    """Returns the bytes of one hidden state per token and block.

    These remain even under activation checkpointing.

    0 if the model's config does not give its sizes.
    """
    config = getattr(model, "config", None)
    width, depth = (getattr(config, name, 0) for name in ("hidden_size", "num_hidden_layers"))
    sizes = [parameter.element_size() for parameter in model.parameters()]
    return (
        tokens * width * depth * min(sizes, default=0)
        if isinstance(width, int) and isinstance(depth, int)
        else 0
    )


def available_memory_bytes() -> int | None:
    """Returns the memory that one process can use.

    This is the accelerator's free memory, or else its share of the machine's available memory,
    without swap.

    None if unknown (no ``/proc/meminfo``).
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        lines = _MEMORY_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


SIZES = (
    "batch_size",
    "window_tokens",
    "max_tokens",
    "image_size",
    "global_size",
    "local_count",
    "candidates",
)
"""Last components of recipe keys that memory grows with, in every modality."""


def smaller(recipe: Recipe) -> str:
    """Returns advice on which keys to lower in a recipe that does not fit in memory.

    The message names their present values.
    """
    sizes: list[str] = []

    def walk(tree: Any, at: str) -> None:
        if isinstance(tree, dict):
            for name, item in tree.items():
                walk(item, f"{at}.{name}" if at else name)
        elif (
            at.rpartition(".")[2] in SIZES
            and isinstance(tree, int)
            and not at.startswith("learner.prepare")
        ):
            sizes.append(f"{at} (now {tree})")

    walk(recipe.model_dump(mode="json"), "")
    return f"lower {', '.join(sizes)}, or take a smaller learner"


def readable_size(count: int) -> str:
    """Formats a byte count as ``1.5 GiB`` or ``20.0 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
