"""The files of a picture, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vpretrain.system.errors import UserError
from vpretrain.vision.data.decoding import (
    DECODING,
    BadFile,
    Decoding,
    ImageSource,
    depth_in_metres,
    file_id,
    label_numbers,
)
from vpretrain.vision.data.images import (
    Picture,
    content_id,
    cropped,
    resized,
    valid_depth,
)
from vpretrain.vision.data.labels import LabelCode
from vpretrain.vision.data.picture_store import GIB

Size = int | tuple[int, int]
"""Height and width, or the shorter side with the aspect ratio kept (see :func:`images.resized`)."""
Window = tuple[int, int, int, int]
"""Top, left, height and width, in pixels of the upright image."""

LONGEST_TO_SHORTEST = 20
"""Largest aspect ratio of a picture; 1 x 4000 pixels would be scaled to 64 x 256,000."""
NYU_DEPTH_METRES = (1e-3, 10.0)
"""Valid depths on NYUv2: above the first, up to the second."""

PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Files:
    """The files of one picture, and its category.

    Args:
        image: image file, in any format and mode that PIL reads.
        labels: image with a class number or a colour at each pixel.
        depth: 16-bit PNG in millimetres, or ``.npy`` of floating-point metres.
        category: class of the whole image.
        window: part of the image to use; None: all of it.
    """

    image: ImageSource
    labels: ImageSource | None = None
    depth: ImageSource | None = None
    category: int | None = None
    window: Window | None = None

    def read(self, reading: Reading, *, identified: bool = True) -> Picture:
        """Decode the files and resize the picture.

        Args:
            reading: how to decode, and the size.
            identified: set ``origin`` and ``file``, which costs a hash over all pixels.

        Raises:
            BadFile: a file cannot be used.
        """
        pixels = torch.from_numpy(reading.decoding.pixels(self.image))
        pixels = pixels.permute(2, 0, 1).contiguous()
        self._check_proportions(pixels)
        labels = depth = None
        if self.labels is not None and reading.code is not None:
            written = label_numbers(self.labels, colours=reading.code.colours)
            self._check_size(self.labels, "label map", written, pixels)
            labels = reading.code.decode(self.labels, written)
        if self.depth is not None:
            depth = self._depth(pixels, reading.depth_metres)
        picture = Picture(str(self.image), pixels, labels, depth, self.category)
        if identified:
            picture = replace(picture, origin=content_id(pixels), file=file_id(self.image))
        if self.window is not None:
            try:
                picture = cropped(picture, *self.window)
            except ValueError:
                message = "the window that is meant of this image is not within it"
                shown, whole = f"top, left, height, width {self.window}", _shape(picture.pixels)
                raise BadFile(self.image, message, shown, f"a part of {whole}") from None
        return picture if reading.size is None else resized(picture, reading.size)

    def _depth(self, pixels: Tensor, within_metres: tuple[float, float]) -> Tensor:
        assert self.depth is not None
        metres = depth_in_metres(self.depth)
        self._check_size(self.depth, "depth map", metres, pixels)
        known = valid_depth(torch.from_numpy(metres), *within_metres)
        if not known.any():
            low, high = within_metres
            message = "the depth map has no valid pixel: correct its unit, or take the picture out"
            accepted = f"some depths above {low} and up to {high} metres"
            raise BadFile(self.depth, message, _span(metres), accepted)
        return torch.where(known, torch.from_numpy(metres), 0.0)

    def _check_proportions(self, pixels: Tensor) -> None:
        short, long = sorted(pixels.shape[1:])
        if long > LONGEST_TO_SHORTEST * short:
            message = "the picture is a strip: crop it, or take it out"
            accepted = f"sides that differ by a factor of {LONGEST_TO_SHORTEST} at most"
            raise BadFile(self.image, message, f"{_shape(pixels)} pixels", accepted)

    def _check_size(self, path: ImageSource, what: str, values: np.ndarray, pixels: Tensor) -> None:
        if values.shape != tuple(pixels.shape[1:]):
            message = (
                f"the {what} does not have the size of its image {self.image} (turned as its EXIF "
                "orientation says): make it again, without resizing"
            )
            shown = f"{values.shape[0]} x {values.shape[1]}"
            raise BadFile(path, message, shown, f"{_shape(pixels)} pixels")


@dataclass(frozen=True)
class Reading:
    """How files are decoded to pictures.

    Args:
        code: meaning of the numbers in label maps; None: label maps are not read.
        depth_metres: valid depths, above the first and up to the second; others become 0 (unknown).
        size: size of every picture; None: as stored.
        decoding: conversion of pixels to 8 bits.
        memory_bytes: memory for the decoded pictures of a set (see
            :class:`~vpretrain.vision.data.picture_store.PictureStore`).
    """

    code: LabelCode | None = None
    depth_metres: tuple[float, float] = NYU_DEPTH_METRES
    size: Size | None = None
    decoding: Decoding = DECODING
    memory_bytes: float = 8 * GIB


AS_STORED = Reading()


class Folder:
    """Pictures that are decoded from their files on each access.

    Only :meth:`identified` hashes them, because a stream draws each picture many times.

    Args:
        files: the files of each picture.
        reading: how they are decoded.
        origins: :attr:`Picture.origin` of each picture if all have been decoded once, else empty.
    """

    def __init__(
        self, files: Sequence[Files], reading: Reading, origins: Sequence[str] = ()
    ) -> None:
        self.files, self.reading, self.origins = tuple(files), reading, tuple(origins)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Picture:
        return self._read(index, identified=False)

    def identified(self, index: int) -> Picture:
        """Decode a picture and set its ``origin`` and ``file``."""
        return self._read(index, identified=True)

    def _read(self, index: int, *, identified: bool) -> Picture:
        try:
            return self.files[index].read(self.reading, identified=identified)
        except BadFile as bad:
            raise UserError(bad.problem) from bad


def _shape(pixels: Tensor) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[2]}"


def _span(metres: np.ndarray) -> str:
    finite = metres[np.isfinite(metres)]
    return f"{finite.min():g} to {finite.max():g} metres" if finite.size else "no finite number"
