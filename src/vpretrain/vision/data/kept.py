"""Decoded pictures in bounded memory: what does not fit is in a temporary file."""

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
    """Where a tensor is in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    def within(self, file: Tensor) -> Tensor:
        """The tensor, a view of the file's bytes."""
        length = self.shape.numel() * self.dtype.itemsize
        return file[self.offset : self.offset + length].view(self.dtype).view(self.shape)


class PictureStore:
    """Takes pictures one by one and gives them all back.

    Those beyond ``memory_bytes`` are views of one file that has no name (it is gone with the
    process); the system reads its pages when they are looked at, and may drop them again."""

    def __init__(self, memory_bytes: float) -> None:
        self.left = memory_bytes
        self.in_memory: list[Picture] = []
        self.in_file: list[tuple[Picture, list[_Stored | None]]] = []
        self.file: IO[bytes] | None = None

    def add(self, picture: Picture) -> None:
        """Takes the next picture."""
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
        """All of them, in the order they came."""
        if self.file is None:
            return self.in_memory
        self.file.flush()
        # Copy on write: torch takes no memory that must not be written to.
        file = torch.from_numpy(np.memmap(self.file, mode="c"))
        return self.in_memory + [_complete(*each, file) for each in self.in_file]


def _written(file: IO[bytes], tensor: Tensor) -> _Stored:
    file.write(bytes(-file.tell() % 8))  # a view starts at a multiple of its items' size
    place = _Stored(file.tell(), tensor.shape, tensor.dtype)
    file.write(tensor.contiguous().numpy().tobytes())
    return place


def _complete(picture: Picture, stored: list[_Stored | None], file: Tensor) -> Picture:
    pixels, labels, depth = (None if each is None else each.within(file) for each in stored)
    assert pixels is not None
    return replace(picture, pixels=pixels, labels=labels, depth=depth)
