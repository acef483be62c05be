"""Decode image, label and depth files to 8-bit pixels, label numbers and metres.

A file that cannot be read raises :class:`BadFile`, which names it."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import weakref
from collections.abc import Callable, Iterator
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
"""PIL modes with one channel of more than 8 bits, which ``convert("RGB")`` would clip to white."""
_FORMAT, _WHITE_IS_ZERO = "vpretrain format", "vpretrain white is zero"
"""Keys of ``Image.info`` for properties that are lost when PIL transposes the image."""
_TIFF_PHOTOMETRIC = 262
_WHITE_16_BITS = 65535
_TWELVE_BITS = 4095
_TAIL_BYTES = 4096


class Container:
    """An open file that holds several members.

    Members are read with ``pread``, which leaves the file position alone, so forked processes can
    share the file. It is closed when the last reference to it is gone."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        weakref.finalize(self, file.close)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on."""
        return os.pread(self.file.fileno(), length, offset)


@dataclass(frozen=True)
class Reopened:
    """A file that holds several members and is opened when one is read.

    Args:
        path: the file.
        opened: opens a path, or returns the file if it is open still.
    """

    path: Path
    opened: Callable[[Path], Container]

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on."""
        return self.opened(self.path).read(offset, length)


@dataclass(frozen=True, slots=True)
class Member:
    """A file stored inside a larger file.

    Args:
        name: its name in messages, such as ``shard-00.tar:0001.jpg``.
        within: the file that holds it.
        offset: position of its first byte.
        length: size in bytes.
    """

    name: str
    within: Container | Reopened
    offset: int
    length: int

    def __str__(self) -> str:
        return self.name

    @property
    def suffix(self) -> str:
        """File extension in lower case, with the dot."""
        return PurePath(self.name).suffix.lower()

    def open(self) -> IO[bytes]:
        """Read all its bytes into an in-memory file."""
        return io.BytesIO(self.within.read(self.offset, self.length))


ImageSource = Path | Member
"""The file that an image, a label map or a depth map is read from."""
FileId = tuple[int, str]
"""Length in bytes, and SHA-256 of the last 4,096 bytes; equal for copies of one file."""


def length_of(source: ImageSource) -> int:
    """Return the size of a file in bytes."""
    return source.length if isinstance(source, Member) else source.stat().st_size


def file_id(source: ImageSource) -> FileId:
    """Return the :data:`FileId` of a file; the cost does not depend on its length."""
    length = length_of(source)
    count = min(length, _TAIL_BYTES)
    if isinstance(source, Member):
        tail = source.within.read(source.offset + length - count, count)
    else:
        with source.open("rb") as file:
            file.seek(length - count)
            tail = file.read()
    return length, hashlib.sha256(tail).hexdigest()


class BadFile(Exception):
    """One file that cannot be used; ``problem`` says why."""

    def __init__(self, where: ImageSource, message: str, value: str, accepted: str) -> None:
        self.problem = Problem(str(where), value, accepted, message)
        super().__init__(str(self.problem))


@dataclass(frozen=True)
class Decoding:
    """How image files are converted to 8 bits per channel.

    Args:
        background: RGB colour (0 to 255) behind transparent pixels.
        white_level: value of white in one-channel files of 16 bits, 32 bits or floats; black is 0.
            None: 65535 for 16 bits. Wider files are then refused, and so are 16-bit files whose
            values fit into 12 bits, because their white level is unknown.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    white_level: float | None = None

    def pixels(self, path: ImageSource) -> np.ndarray:
        """Decode an image to RGB, uint8 ``[H, W, 3]``, with its EXIF orientation applied.

        An animation yields its first frame.

        Raises:
            BadFile: the file cannot be read, or its values cannot be converted to 8 bits.
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
    """Pack R, G and B into one number: ``[..., 3]`` uint8 to ``[...]`` int32."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def label_numbers(path: ImageSource, *, colours: bool = False) -> np.ndarray:
    """Read the raw numbers of a label map, integers ``[H, W]``, with EXIF orientation applied.

    Args:
        path: the image that holds the label map.
        colours: return :func:`packed` colours; palette images are converted to RGB first.

    Raises:
        BadFile: the file cannot be read, or ``colours`` is False and the image has no integers or
            several channels that differ.
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
    """Read a depth map in metres, float32 ``[H, W]``.

    The file is a 16-bit PNG in millimetres (EXIF orientation applied), or a ``.npy`` of
    floating-point metres.

    Raises:
        BadFile: the file cannot be read, or is neither.
    """
    accepted = "a PNG of 16 bits in millimetres, or a .npy of floating metres, of one channel"
    if path.suffix.lower() == ".npy":
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
    """Format dtype and shape for messages."""
    return f"{values.dtype} {' x '.join(str(length) for length in values.shape)}"


@contextmanager
def _opened(path: ImageSource) -> Iterator[Image.Image]:
    """Open and decode an image and apply its EXIF orientation; PIL's errors become BadFile."""
    try:
        # By its path, Pillow would map a raw TIFF to memory as if it were turned already.
        source = path.open("rb") if isinstance(path, Path) else path.open()
        with source as file, Image.open(file) as image:
            image.info[_FORMAT] = image.format
            # Pillow inverts white-is-zero images only at 8 bits.
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
    image.load()  # a truncated file fails here, not as broken EXIF
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image  # unreadable EXIF: keep the stored orientation
