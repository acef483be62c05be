"""What a run takes against what the machine has: a rough estimate, to be told before hours are
spent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpretrain.config.recipe import Checkpoint, Recipe
from vpretrain.system.distributed import launched, processes
from vpretrain.system.errors import Problem

_MEMORY_INFO = Path("/proc/meminfo")
_PLAIN = Checkpoint()  # what a recipe has that says nothing of it


def shortages(
    model: nn.Module,
    checkpoint: Checkpoint = _PLAIN,
    folder: Path = Path(),
    *,
    tokens: int = 0,
    followers: int = 0,
) -> list[Problem]:
    """What the machine is too small for: :func:`memory_shortage` and :func:`disk_shortage`."""
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
    """A problem where a run certainly does not fit: what is counted is a lower bound, for each
    process of a run.

    The weights; for parameters that train also the gradient and Adam's two moments; for every block
    one hidden state a token. What arm, feedback and blocks hold besides comes on top.

    Args:
        model: only sizes and dtypes are read, so that it may be on the meta device.
        checkpoint: of the recipe; an asynchronous one holds a copy of what it writes.
        tokens: positions of a batch that go through the model at once, in all processes together.
        followers: copies of the model that run beside it (an EMA teacher, a reference).
        shared: blocks that are shared out (:func:`vpretrain.system.sharding.below`): of what they
            hold a process has its part. Without a launcher nobody knows how small that will be, and
            it counts for nothing. Before, the weights are there whole.
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
    """The bytes that :func:`memory_shortage` counts, with its arguments."""
    every, trained = _bytes(model), _bytes(model, trained=True)
    needed = every * (1 + followers) + 3 * trained + _hidden_states(model, tokens) // processes()
    whole = sum(_bytes(block) + 3 * _bytes(block, trained=True) for block in shared)
    part = whole // processes() if launched() else 0
    needed = max(every, needed - whole + part)
    if checkpoint.asynchronous and not torch.cuda.is_available():
        # The copy that one process writes while the run goes on; it is in the machine's memory.
        needed += (3 + followers) * trained // processes()
    return needed


def disk_shortage(
    model: nn.Module,
    checkpoint: Checkpoint = _PLAIN,
    folder: Path = Path(),
    *,
    followers: int = 0,
    checkpoint_bytes: int | None = None,
) -> list[Problem]:
    """A problem where a run's files do not fit.

    Counted are the model folder and, ``keep_last`` times and once more for the one that is being
    written, a checkpoint: where its size is not known, what trains with its two moments, and as
    much of each follower without them. With ``keep_best`` two model folders come on top.

    Args:
        model: as in :func:`memory_shortage`.
        checkpoint: of the recipe.
        folder: on the disk that results are written to; it need not be there yet.
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
    """The bytes that :func:`disk_shortage` counts, with its arguments."""
    models = 1 + 2 * (checkpoint.keep_best is not None)
    if checkpoint_bytes is None:
        checkpoint_bytes = (3 + followers) * _bytes(model, trained=True)
    return models * _bytes(model) + (checkpoint.keep_last + 1) * checkpoint_bytes


def _bytes(model: nn.Module, *, trained: bool = False) -> int:
    return sum(
        p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not trained
    )


def _hidden_states(model: nn.Module, tokens: int) -> int:
    """What even activation checkpointing keeps: one hidden state a token and block; 0 where the
    model does not say.
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
    """What a process could use: of its accelerator, or of the machine without swapping, together
    with the others on it.

    None where the system does not say (no ``/proc/meminfo``).
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
"""Last parts of recipe keys that memory grows with, in every modality."""


def smaller(recipe: Recipe) -> str:
    """What to lower in a recipe that does not fit into memory, with the values that it has now."""
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
    """``1.5 GiB``, ``20.0 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
