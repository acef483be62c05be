"""Pictures: pixels with optional labels, depth and category, at the size they are used at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = 255
"""Label of pixels that are left out of every loss and score."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Picture:
    """One image with its annotations.

    Args:
        name: file path, or the name of a generated picture (``scenes/dev/12``); shown in errors.
        pixels: uint8 [3, H, W], RGB.
        labels: int64 [H, W], classes from 0; ``IGNORE`` where there is no label. None: not
            labelled.
        depth: float32 [H, W], metres along the camera's axis; 0, negative or not finite where
            unknown. None: no depth.
        category: class of the whole image, from 0. None: unknown.
        origin: hash of the pixels as stored in the file, which identifies the picture at any size.
            Empty: :attr:`identity` hashes the current pixels.
        file: length in bytes of the file and a hash of its last bytes, equal for copies of the
            file. None: unknown.
    """

    name: str
    pixels: Tensor
    labels: Tensor | None = None
    depth: Tensor | None = None
    category: int | None = None
    origin: str = ""
    file: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
            shown = f"{pixels.dtype} {tuple(pixels.shape)}"
            raise ValueError(f"{self.name}: pixels are uint8 [3, H, W], got {shown}")
        maps = {"labels": (self.labels, torch.int64), "depth": (self.depth, torch.float32)}
        for what, (values, dtype) in maps.items():
            if values is not None and (values.dtype, values.shape) != (dtype, pixels.shape[1:]):
                expected, shown = tuple(pixels.shape[1:]), f"{values.dtype} {tuple(values.shape)}"
                raise ValueError(f"{self.name}: {what} are {dtype} {expected}, got {shown}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def identity(self) -> str:
        """Key that is equal for pictures made from the same pixels, whatever their size."""
        return self.origin or content_id(self.pixels)

    def digest(self) -> str:
        """Sixteen hexadecimal digits over pixels, labels, depth and category, not the name."""
        sha = hashlib.sha256(repr((self.size, self.category)).encode())
        maps = {"pixels": self.pixels, "labels": self.labels, "depth": self.depth}
        for what, values in maps.items():
            if values is not None:
                sha.update(what.encode() + values.contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


class Pictures(Protocol):
    """A set of pictures, decoded beforehand (a list) or on access.

    The same index always gives the same picture."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Picture: ...


@dataclass(frozen=True)
class Subset:
    """A subset of pictures, given by their indices; decoded on access."""

    pictures: Pictures
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int, /) -> Picture:
        return self.pictures[self.places[index]]


def content_id(pixels: Tensor) -> str:
    """Sixteen hexadecimal digits over size and pixels (uint8 [3, H, W])."""
    sha = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    sha.update(pixels.contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def unlabelled(picture: Picture) -> Picture:
    """Return the picture without labels, depth and category, for the unlabeled stream."""
    return Picture(picture.name, picture.pixels, origin=picture.origin)


def valid_depth(
    depth: Tensor, nearest_metres: float = 0.0, farthest_metres: float = float("inf")
) -> Tensor:
    """Return a bool mask of the depth's shape, True where it is known and within the range.

    The range excludes ``nearest_metres`` and includes ``farthest_metres``."""
    return depth.isfinite() & (depth > max(0.0, nearest_metres)) & (depth <= farthest_metres)


def scaled_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return height and width after scaling the shorter side to ``shorter`` pixels.

    The aspect ratio is kept."""
    height, width = size
    scale = shorter / min(height, width)
    return max(shorter, round(height * scale)), max(shorter, round(width * scale))


def resized(picture: Picture, size: int | tuple[int, int]) -> Picture:
    """Resize a picture; return it unchanged if it already has the size.

    Pixels are interpolated (bilinear, antialiased). Labels and depth take the nearest pixel, so
    that no class or depth appears that was not there.

    Args:
        picture: the picture to resize.
        size: height and width in pixels, whatever the aspect ratio; a single number is the shorter
            side, with the aspect ratio kept.
    """
    height, width = scaled_size(picture.size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"a picture has at least one pixel, got {height} x {width}")
    if (height, width) == picture.size:
        return picture
    rows, columns = _nearest(picture.size[0], height), _nearest(picture.size[1], width)
    size = height, width
    scaled = functional.interpolate(picture.pixels[None], size, mode="bilinear", antialias=True)
    return replace(
        picture,
        pixels=scaled[0],
        labels=None if picture.labels is None else picture.labels[rows][:, columns],
        depth=None if picture.depth is None else picture.depth[rows][:, columns],
    )


def _nearest(old: int, new: int) -> Tensor:
    """Map each of ``new`` pixels to the one of ``old`` that holds its centre.

    Integer arithmetic, so nothing is rounded."""
    return (2 * torch.arange(new) + 1) * old // (2 * new)


def cropped(picture: Picture, top: int, left: int, height: int, width: int) -> Picture:
    """Crop pixels, labels and depth to a window, which must lie within the picture."""
    if min(top, left) < 0 or top + height > picture.size[0] or left + width > picture.size[1]:
        raise ValueError(
            f"{picture.name}: no window {height} x {width} at ({top}, {left}) in {picture.size}"
        )
    rows, columns = slice(top, top + height), slice(left, left + width)
    return replace(
        picture,
        pixels=picture.pixels[:, rows, columns],
        labels=None if picture.labels is None else picture.labels[rows, columns],
        depth=None if picture.depth is None else picture.depth[rows, columns],
    )


def stacked(pictures: Sequence[Picture]) -> Tensor:
    """Stack the pixels of pictures of one size to uint8 [B, 3, H, W]."""
    if not pictures:
        raise ValueError("a batch needs at least one picture")
    first = pictures[0]
    for picture in pictures:
        if picture.size != first.size:
            raise ValueError(
                f"pictures of one batch have one size: {first.name} is {first.size}, "
                f"{picture.name} {picture.size}"
            )
    return torch.stack([picture.pixels for picture in pictures])


def normalised(
    pictures: Sequence[Picture] | Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Normalise pixels to a backbone's input, float32 [B, 3, H, W].

    Args:
        pictures: pictures of one size, or their pixels [B, 3, H, W]: uint8, or floating in [0, 1].
        mean: mean of R, G and B on the scale [0, 1].
        std: standard deviation of R, G and B on the same scale.
    """
    pixels = pictures if isinstance(pictures, Tensor) else stacked(pictures)
    scaled = pixels.float() if pixels.is_floating_point() else pixels.float() / 255
    shape = (3, 1, 1)
    return (scaled - scaled.new_tensor(mean).view(shape)) / scaled.new_tensor(std).view(shape)


HASHED = 256
"""Most pictures of a set that enter its hash; decoding all of a large set would take hours."""


def pictures_hash(pictures: Pictures) -> str:
    """SHA-256 of the number of pictures and of the content of :data:`HASHED` or fewer of them.

    These are evenly spaced, and hashed with labels, depth and category."""
    sha = hashlib.sha256(str(len(pictures)).encode())
    for place in range(0, len(pictures), -(-len(pictures) // HASHED) or 1):
        sha.update(pictures[place].digest().encode())
    return sha.hexdigest()
