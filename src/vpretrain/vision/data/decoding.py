"""Files to numbers: pixels of 8 bits, label numbers, metres; what cannot be read is refused by
name."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from vpretrain.system.errors import Problem

DEPTH_SUFFIXES = (".png", ".npy")
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""One channel of more than 8 bits, which ``convert("RGB")`` would clip to white."""
_FORMAT, _WHITE_IS_ZERO = "vpretrain format", "vpretrain white is zero"
"""What an image that has been turned does not say itself any more, in its ``info``."""
_TIFF_PHOTOMETRIC = 262
_WHITE_16_BITS = 65535
_TWELVE_BITS = 4095
_TAIL_BYTES = 4096


class Container:
    """A file that others are read from, at positions, so that a forked process may read too; it is
    closed when the last of them is gone."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        weakref.finalize(self, file.close)


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a larger one.

    Args:
        name: by which messages call it: ``shard-00.tar:0001.jpg``.
        within: what holds it.
        offset: in bytes.
        length: in bytes.
    """

    name: str
    within: Container
    offset: int
    length: int

    def __str__(self) -> str:
        return self.name

    @property
    def suffix(self) -> str:
        """How its name ends, with the dot."""
        return PurePath(self.name).suffix.lower()

    def open(self) -> IO[bytes]:
        """Its bytes, in memory."""
        return io.BytesIO(os.pread(self.within.file.fileno(), self.length, self.offset))


ImageSource = Path | Member
"""Where a picture or a map is read from."""
FileId = tuple[int, str]
"""What copies of a file have in common: their length in bytes, and a hash of the last 4,096."""


def length_of(source: ImageSource) -> int:
    """In bytes."""
    return source.length if isinstance(source, Member) else source.stat().st_size


def file_id(source: ImageSource) -> FileId:
    """See :data:`FileId`; cheap, whatever the file's length."""
    length = length_of(source)
    count = min(length, _TAIL_BYTES)
    if isinstance(source, Member):
        descriptor, end = source.within.file.fileno(), source.offset + length
        tail = os.pread(descriptor, count, end - count)
    else:
        with source.open("rb") as file:
            file.seek(length - count)
            tail = file.read()
    return length, hashlib.sha256(tail).hexdigest()


class BadFile(Exception):
    """What is wrong with one file."""

    def __init__(self, where: ImageSource, message: str, value: str, accepted: str) -> None:
        self.problem = Problem(str(where), value, accepted, message)
        super().__init__(str(self.problem))


@dataclass(frozen=True)
class Decoding:
    """How the pixels of files become 8 bits a channel.

    Args:
        background: R, G and B from 0 to 255 behind transparent pixels.
        white_level: the number that is white in one-channel files of 16 bits, 32 bits or floats, 0
            being black. None: 65535 in 16 bits; wider files are refused, and so are those of 16
            bits that use 12 of them or fewer, for nothing says what is white there.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    white_level: float | None = None

    def pixels(self, path: ImageSource) -> np.ndarray:
        """RGB, uint8 ``[H, W, 3]``, upright (EXIF orientation applied); of an animation the first
        frame.

        Raises:
            BadFile: the file cannot be read, or its numbers cannot be brought to 8 bits.
        """
        with _opened(path) as image:
            if image.mode in _WIDE_MODES:
                # Pillow before 11.3 opens PNGs of 16 bits in mode I.
                sixteen = image.mode.startswith("I;16") or image.info[_FORMAT] == "PNG"
                grey = self._eight_bits(path, np.asarray(image), sixteen=sixteen)
                if image.info[_WHITE_IS_ZERO]:
                    grey = 255 - grey
                return np.repeat(grey[:, :, None], 3, axis=2)
            if image.mode in _ALPHA_MODES or "transparency" in image.info:
                ground = Image.new("RGBA", image.size, (*self.background, 255))
                image = Image.alpha_composite(ground, image.convert("RGBA"))
            return np.array(image.convert("RGB"))

    def _eight_bits(self, path: ImageSource, values: np.ndarray, *, sixteen: bool) -> np.ndarray:
        wide = values.astype(np.float64)
        low, high, white = float(wide.min()), float(wide.max()), self.white_level
        span, key = f"{low:g} to {high:g}", "data.white_level"
        if not np.isfinite(wide).all() or low < 0:
            message = "some numbers are no brightness: convert the picture"
            raise BadFile(path, message, span, "finite numbers from 0")
        if white is None:
            kind = "16 bits" if sixteen else str(values.dtype)
            if not sixteen or 0 < high <= _TWELVE_BITS:
                message = f"nothing says which number is white in this picture of {kind}: set {key}"
                accepted = f"{key}: the number that is white, such as 1, 255, 4095 or 65535"
                raise BadFile(path, message, span, accepted)
            white = _WHITE_16_BITS
        if high > white:
            message = f"some pixels are brighter than white: correct {key}, or the picture"
            raise BadFile(path, message, span, f"0 to {white:g} ({key})")
        return (wide * (255 / white) + 0.5).astype(np.uint8)


DECODING = Decoding()


def packed(colours: np.ndarray) -> np.ndarray:
    """One number for R, G and B: ``[..., 3]`` uint8 to ``[...]`` int32."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def label_numbers(path: ImageSource, *, colours: bool = False) -> np.ndarray:
    """The numbers of a label map as they are written, upright; whole numbers ``[H, W]``.

    Args:
        path: of an image.
        colours: read :func:`packed` colours (of a palette, those that it stands for).

    Raises:
        BadFile: the file cannot be read, or its channels differ and no colours are asked for.
    """
    with _opened(path) as image:
        if colours:
            return packed(np.asarray(image.convert("RGB")))
        values = np.asarray(image)
    if values.ndim == 3 and values.shape[2] in (2, 4) and (values[:, :, -1] == 255).all():
        values = values[:, :, :-1]  # nothing is transparent
    if values.ndim == 3 and (values == values[:, :, :1]).all():
        values = values[:, :, 0]  # grey saved as RGB
    if values.ndim != 2 or values.dtype.kind not in "bui":
        message = "this is no label map: it has several channels, or no whole numbers (where "
        message += "colours stand for classes, set label_colours)"
        accepted = "an image of one channel with class numbers"
        raise BadFile(path, message, described(values), accepted)
    return values


def depth_in_metres(path: ImageSource) -> np.ndarray:
    """A depth map in metres, float32 ``[H, W]``: a PNG of 16 bits in millimetres (upright), or a
    ``.npy`` of floating metres.

    Raises:
        BadFile: the file cannot be read, or is neither.
    """
    accepted = "a PNG of 16 bits in millimetres, or a .npy of floating metres, of one channel"
    if path.suffix == ".npy":
        try:
            source = path if isinstance(path, Path) else path.open()
            values = np.load(source, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            message = "the depth map is cut off or broken: get it again, or take it out"
            raise BadFile(path, message, str(error), accepted) from error
        if values.dtype.kind != "f" or values.ndim != 2:
            raise BadFile(path, "this is no depth map in metres", described(values), accepted)
        return values.astype(np.float32)
    with _opened(path) as image:
        values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.dtype.itemsize < 2:
        raise BadFile(path, "this is no depth map in millimetres", described(values), accepted)
    return values.astype(np.float32) / np.float32(1000)


def described(values: np.ndarray) -> str:
    """Type and shape, for messages."""
    return f"{values.dtype} {' x '.join(str(length) for length in values.shape)}"


@contextmanager
def _opened(path: ImageSource) -> Iterator[Image.Image]:
    """The image of a file, upright; whatever PIL finds wrong while it is decoded is a BadFile."""
    try:
        with Image.open(path if isinstance(path, Path) else path.open()) as image:
            image.info[_FORMAT] = image.format
            # Pillow turns these in 8 bits alone.
            tags = getattr(image, "tag_v2", {})
            image.info[_WHITE_IS_ZERO] = tags.get(_TIFF_PHOTOMETRIC) == 0
            yield _upright(image)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        message = (
            "the image is cut off, broken, no image, or of a kind that Pillow cannot read: get it "
            "again, convert it, or take it out"
        )
        reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
        raise BadFile(path, message, reason, "a whole image file") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # a file that is cut off fails here, not as broken EXIF
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image  # EXIF that cannot be read turns nothing
