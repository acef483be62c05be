"""Decoded pictures in bounded memory; the excess is stored in a temporary file."""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import torch
from torch import Tensor

from vpretrain.vision.data.images import Picture

GIB = 1024**3


@dataclass(frozen=True)
class _Stored:
    """Position, shape and dtype of a tensor in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    def within(self, file: Tensor) -> Tensor:
        """Return the tensor as a view of the file's bytes."""
        length = self.shape.numel() * self.dtype.itemsize
        return file[self.offset : self.offset + length].view(self.dtype).view(self.shape)


class PictureStore:
    """Collects pictures one by one, with at most ``memory_bytes`` of them in memory.

    The rest are views of one memory-mapped, unnamed file, which is deleted with the process; the
    operating system loads its pages on access and may drop them again."""

    def __init__(self, memory_bytes: float) -> None:
        self.left = memory_bytes
        self.in_memory: list[Picture] = []
        self.in_file: list[tuple[Picture, list[_Stored | None]]] = []
        self.file: IO[bytes] | None = None

    def add(self, picture: Picture) -> None:
        """Add the next picture, in memory as long as there is room, then in the file."""
        maps = [picture.pixels, picture.labels, picture.depth]
        size = sum(each.nbytes for each in maps if each is not None)
        if self.file is None and size <= self.left:
            self.left -= size
            self.in_memory.append(picture)
            return
        if self.file is None:
            self.file = tempfile.TemporaryFile(prefix="vpretrain-pictures-")  # noqa: SIM115
            weakref.finalize(self, self.file.close)
        stored = [None if each is None else _written(self.file, each) for each in maps]
        nothing = torch.empty(3, 0, 0, dtype=torch.uint8)
        self.in_file.append((replace(picture, pixels=nothing, labels=None, depth=None), stored))

    def pictures(self) -> list[Picture]:
        """Return all pictures in the order they were added."""
        if self.file is None:
            return self.in_memory
        self.file.flush()
        # Copy on write, since torch does not accept read-only memory.
        file = torch.from_numpy(np.memmap(self.file, mode="c"))
        return self.in_memory + [_complete(*each, file) for each in self.in_file]


def _written(file: IO[bytes], tensor: Tensor) -> _Stored:
    file.write(bytes(-file.tell() % 8))  # a view must start at a multiple of its item size
    place = _Stored(file.tell(), tensor.shape, tensor.dtype)
    file.write(tensor.contiguous().numpy().tobytes())
    return place


def _complete(picture: Picture, stored: list[_Stored | None], file: Tensor) -> Picture:
    pixels, labels, depth = (None if each is None else each.within(file) for each in stored)
    assert pixels is not None
    return replace(picture, pixels=pixels, labels=labels, depth=depth)
