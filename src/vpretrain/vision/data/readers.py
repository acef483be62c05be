"""Pictures from folders; everything that is wrong with the files is found before anything is
trained.

Every file is decoded once when a folder is read, which is the only way to know that it can be. What
cannot be used is either an error that names it, or is left out, counted and named, as
``on_bad_row`` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vpretrain.system.errors import Problem, UserError, user_error
from vpretrain.vision.data.images import IGNORE, Picture, Pictures, cropped, resized, valid_depth

OnBadRow = Literal["stop", "skip"]
Size = int | tuple[int, int]
"""Height and width; a single number is the shorter side, the proportions kept (see
:func:`images.resized`).
"""
Window = tuple[int, int, int, int]
"""Top, left, height and width, in pixels of the file."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
NYU_DEPTH_METRES = (1e-3, 10.0)
"""Depths that count on NYUv2."""

PROBLEMS_SHOWN = 5
_EIGEN_ROWS, _EIGEN_COLUMNS, _EIGEN_SIZE = (45, 471), (41, 601), (480, 640)


class BadFile(Exception):
    """What is wrong with one file."""

    def __init__(self, where: Path, message: str, value: str, accepted: str) -> None:
        self.problem = Problem(str(where), value, accepted, message)
        super().__init__(str(self.problem))


@dataclass(frozen=True)
class LabelCode:
    """What the numbers in a label map mean: class c is written as ``first + c``.

    Args:
        classes: how many there are.
        void: the number of pixels without a label, which become ``IGNORE``; None if there is none.
            255 always means that.
        first: the number that class 0 is written as.
    """

    classes: int
    void: int | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.classes <= IGNORE:
            raise ValueError(
                f"there are 1 to {IGNORE} classes, since {IGNORE} is no label; got {self.classes}"
            )

    def decode(self, path: Path, written: np.ndarray) -> Tensor:
        """Classes from 0, and ``IGNORE``; int64 of the map's shape."""
        void = (
            (written == IGNORE)
            if self.void is None
            else (written == IGNORE) | (written == self.void)
        )
        wrong = ~void & ((written < self.first) | (written >= self.first + self.classes))
        if wrong.any():
            message = (
                "a class number is out of range: correct the map, or what it is read with "
                "(classes, void)"
            )
            found = ", ".join(str(number) for number in np.unique(written[wrong])[:PROBLEMS_SHOWN])
            unlabelled = IGNORE if self.void is None else self.void
            accepted = (
                f"{self.first} to {self.first + self.classes - 1}; without a label {unlabelled}"
            )
            raise BadFile(path, message, found, accepted)
        return torch.from_numpy(np.where(void, IGNORE, written.astype(np.int64) - self.first))


@dataclass(frozen=True)
class Files:
    """The files of one picture, and its category; :meth:`read` decodes them.

    Args:
        image: its pixels, in any format and mode that PIL reads.
        labels: an image of one channel with a class number at each pixel.
        depth: a PNG of 16 bits in millimetres, or a ``.npy`` of floating metres.
        category: class of the whole image.
        window: the part of the image that is meant; None: all of it. For images without maps.
    """

    image: Path
    labels: Path | None = None
    depth: Path | None = None
    category: int | None = None
    window: Window | None = None

    def read(
        self, code: LabelCode | None, depth_metres: tuple[float, float], size: Size | None
    ) -> Picture:
        """Decodes the files and brings them to a size.

        Raises:
            BadFile: one of them cannot be used.
        """
        pixels = torch.from_numpy(_decoded(self.image, "RGB").copy()).permute(2, 0, 1).contiguous()
        labels = depth = None
        if self.labels is not None and code is not None:
            written = _decoded(self.labels, None)
            if written.ndim != 2 or written.dtype.kind not in "bui":
                message = "this is no label map: it has several channels, or no whole numbers"
                raise BadFile(
                    self.labels,
                    message,
                    _described(written),
                    "an image of one channel with class numbers",
                )
            self._check_size(self.labels, "label map", written, pixels)
            labels = code.decode(self.labels, written)
        if self.depth is not None:
            metres = _metres(self.depth)
            self._check_size(self.depth, "depth map", metres, pixels)
            known = valid_depth(torch.from_numpy(metres), *depth_metres)
            if not known.any():
                low, high = depth_metres
                message = (
                    "the depth map has no valid pixel: correct its unit, or take the picture out"
                )
                raise BadFile(
                    self.depth,
                    message,
                    _span(metres),
                    f"some depths above {low} and up to {high} metres",
                )
            depth = torch.where(known, torch.from_numpy(metres), 0.0)
        picture = Picture(str(self.image), pixels, labels, depth, self.category)
        if self.window is not None:
            try:
                picture = cropped(picture, *self.window)
            except ValueError:
                message = "the window that is meant of this image is not within it"
                found = f"top, left, height, width {self.window}"
                raise BadFile(
                    self.image, message, found, f"a part of {_shape(picture.pixels)}"
                ) from None
        return picture if size is None else resized(picture, size)

    def _check_size(self, path: Path, what: str, values: np.ndarray, pixels: Tensor) -> None:
        if values.shape != tuple(pixels.shape[1:]):
            message = (
                f"the {what} has not the size of its image {self.image}: make it again, "
                "without resizing"
            )
            raise BadFile(
                path, message, f"{values.shape[0]} x {values.shape[1]}", f"{_shape(pixels)} pixels"
            )


class Folder:
    """Pictures that are decoded from their files whenever they are asked for.

    Args:
        files: of each picture.
        code: see :class:`LabelCode`; None leaves label maps alone.
        depth_metres: depths that are not above the first or are above the second become 0 (not
            known).
        size: that each picture is brought to; None keeps its own.
    """

    def __init__(
        self,
        files: Sequence[Files],
        code: LabelCode | None,
        depth_metres: tuple[float, float],
        size: Size | None,
    ) -> None:
        self.files, self.code, self.depth_metres, self.size = tuple(files), code, depth_metres, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Picture:
        try:
            return self.files[index].read(self.code, self.depth_metres, self.size)
        except BadFile as bad:
            raise UserError(bad.problem) from bad


def read_folder(
    images: Path | str,
    labels: Path | str | None = None,
    depth: Path | str | None = None,
    *,
    code: LabelCode | None = None,
    depth_metres: tuple[float, float] = NYU_DEPTH_METRES,
    size: Size | None = None,
    on_bad_row: OnBadRow = "stop",
    keep: bool = True,
) -> tuple[Pictures, list[Problem]]:
    """The images of a folder in the order of their names, each with the maps of the same name.

    Args:
        images: folder of the images.
        labels: folder of the label maps (``.png``), needs ``code``; None: not labelled.
        depth: folder of the depth maps: ``.png`` of 16 bits in millimetres, or ``.npy`` of floating
            metres.
        code: what the numbers in the label maps mean.
        depth_metres: depths that are not above the first or are above the second become 0 (not
            known).
        size: that every picture is brought to; None keeps each at its own.
        on_bad_row: "stop" raises for what cannot be used, "skip" leaves it out.
        keep: True keeps the decoded pictures in memory; False decodes them again whenever they are
            drawn.

    Returns:
        The pictures, at least one, and what is wrong with those that were left out.

    Raises:
        UserError: a folder is missing or holds no picture, or pictures cannot be used (the first
            five, and how many more).
    """
    if labels is not None and code is None:
        raise ValueError("label maps need a code: LabelCode(classes=...)")
    found, problems = [], []
    for image in _images(Path(images)):
        try:
            found.append(
                Files(
                    image,
                    None
                    if labels is None
                    else _partner(image, Path(labels), (".png",), "label map"),
                    None
                    if depth is None
                    else _partner(image, Path(depth), (".png", ".npy"), "depth map"),
                )
            )
        except BadFile as bad:
            problems.append(bad.problem)
    return _read(Path(images), Folder(found, code, depth_metres, size), problems, on_bad_row, keep)


def read_camvid(
    root: Path | str,
    split: str,
    *,
    size: Size | None = None,
    on_bad_row: OnBadRow = "stop",
    keep: bool = True,
) -> tuple[Pictures, list[Problem]]:
    """CamVid with 11 classes (11 is void): ``root/SPLIT/images`` and ``labels``; see
    :func:`read_folder`.
    """
    folder = Path(root) / split
    code = LabelCode(11, void=11)
    return read_folder(
        folder / "images", folder / "labels", code=code, size=size, on_bad_row=on_bad_row, keep=keep
    )


def read_ade20k(
    root: Path | str,
    split: str,
    *,
    size: Size | None = None,
    on_bad_row: OnBadRow = "stop",
    keep: bool = True,
) -> tuple[Pictures, list[Problem]]:
    """ADE20K as in SceneParse150: 0 is void, 1..150 are classes 0..149; see :func:`read_folder`.

    Args:
        root: folder that holds ``images/SPLIT`` and ``annotations/SPLIT``.
        split: ``training`` or ``validation``.
        size: as there.
        on_bad_row: as there.
        keep: as there.
    """
    images, labels = (Path(root) / part / split for part in ("images", "annotations"))
    return read_folder(
        images,
        labels,
        code=LabelCode(150, void=0, first=1),
        size=size,
        on_bad_row=on_bad_row,
        keep=keep,
    )


def read_nyuv2(
    root: Path | str,
    split: str,
    *,
    size: Size | None = None,
    on_bad_row: OnBadRow = "stop",
    keep: bool = True,
) -> tuple[Pictures, list[Problem]]:
    """NYUv2 depth: ``root/SPLIT/rgb`` and ``depth`` (by name, PNG or ``.npy``); see
    :func:`read_folder`.
    """
    folder = Path(root) / split
    return read_folder(
        folder / "rgb", depth=folder / "depth", size=size, on_bad_row=on_bad_row, keep=keep
    )


def read_categories(
    root: Path | str,
    *,
    size: Size | None = None,
    on_bad_row: OnBadRow = "stop",
    keep: bool = False,
    check: bool = True,
) -> tuple[Pictures, list[Problem]]:
    """One folder of images a category, as ImageNet has it; categories count from 0 in the order of
    the folders' names.

    Args:
        root: folder of the categories' folders (``imagenet/train``).
        size: as in :func:`read_folder`.
        on_bad_row: as there.
        keep: as there.
        check: False decodes nothing beforehand, where a million files make that too slow: one that
            cannot be read then stops the run when it is drawn.

    Returns:
        The pictures, at least one, and what is wrong with those that were left out.

    Raises:
        UserError: as there; also for a category without images.
    """
    root = Path(root)
    _check_folder(root)
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    if not folders:
        raise user_error(
            str(root),
            "the folder holds no folders, and each is a category",
            accepted="CATEGORY/IMAGE",
        )
    found = [
        Files(image, category=number)
        for number, folder in enumerate(folders)
        for image in _images(folder)
    ]
    pictures = Folder(found, None, NYU_DEPTH_METRES, size)
    return _read(root, pictures, [], on_bad_row, keep) if check or keep else (pictures, [])


def eigen_crop(depth: Tensor) -> Tensor:
    """True within the part of NYUv2's images that depth is scored on: rows 45..470 and columns
    41..600 of 480 x 640.

    Args:
        depth: [..., H, W]; at another size the window is scaled with it.

    Returns:
        bool, of the shape of ``depth``.
    """
    mask = torch.zeros(depth.shape, dtype=torch.bool, device=depth.device)
    height, width = depth.shape[-2:]
    top, bottom = (round(row * height / _EIGEN_SIZE[0]) for row in _EIGEN_ROWS)
    left, right = (round(column * width / _EIGEN_SIZE[1]) for column in _EIGEN_COLUMNS)
    mask[..., top:bottom, left:right] = True
    return mask


def _read(
    where: Path, pictures: Folder, problems: list[Problem], on_bad_row: OnBadRow, keep: bool
) -> tuple[Pictures, list[Problem]]:
    """Decodes everything once, and keeps what can be used."""
    good: list[Files] = []
    decoded: list[Picture] = []
    for files in pictures.files:
        try:
            picture = files.read(pictures.code, pictures.depth_metres, pictures.size)
        except BadFile as bad:
            problems.append(bad.problem)
            continue
        good.append(files)
        if keep:
            decoded.append(picture)
    if problems and (on_bad_row == "stop" or not good):
        message = (
            f"{len(problems)} of {len(good) + len(problems)} pictures of {where} cannot be used"
        )
        message += (
            "; mend them, or leave them out" if good else "; mend them, or name another folder"
        )
        accepted = (
            "skip, which leaves them out and names them"
            if good
            else "at least one picture that can be used"
        )
        raise UserError(
            *problems[:PROBLEMS_SHOWN], Problem("data.on_bad_row", on_bad_row, accepted, message)
        )
    return (
        decoded if keep else Folder(good, pictures.code, pictures.depth_metres, pictures.size)
    ), problems


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = (
            "this is a file"
            if folder.exists()
            else f"there is no such folder (the path starts at {Path.cwd()})"
        )
        raise user_error(str(folder), f"{what}: correct the path", accepted="a folder")


def _images(folder: Path) -> list[Path]:
    """The image files of a folder by name (those of its subfolders not); at least one."""
    _check_folder(folder)
    found = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        message = "the folder holds no images: fill it, or name another"
        raise user_error(
            str(folder),
            message,
            value="0 images",
            accepted=f"files ending in {', '.join(IMAGE_SUFFIXES)}",
        )
    return found


def _partner(image: Path, folder: Path, suffixes: Sequence[str], what: str) -> Path:
    _check_folder(folder)
    for suffix in suffixes:
        if (path := folder / (image.stem + suffix)).is_file():
            return path
    accepted = " or ".join(str(folder / (image.stem + suffix)) for suffix in suffixes)
    raise BadFile(image, f"this image has no {what}: add it, or take the image out", "", accepted)


def _decoded(path: Path, mode: str | None) -> np.ndarray:
    """The values of an image file; in PIL's ``mode``, or as they are written if that is None."""
    try:
        with Image.open(path) as image:
            if mode is None:
                return np.asarray(image)
            # By way of RGBA, as PIL asks for where a palette has transparency.
            return np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert(mode))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        message = (
            "the image cannot be read: it is cut off, broken, or no image; get it again, or "
            "take it out"
        )
        reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
        raise BadFile(path, message, reason, "a whole image file") from error


def _metres(path: Path) -> np.ndarray:
    """A depth map in metres, float32 of any shape."""
    accepted = "a PNG of 16 bits in millimetres, or a .npy of floating metres, of one channel"
    if path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            message = (
                "the depth map cannot be read: it is cut off or broken; get it again, or "
                "take it out"
            )
            raise BadFile(path, message, str(error), accepted) from error
        if values.dtype.kind != "f" or values.ndim != 2:
            raise BadFile(path, "this is no depth map in metres", _described(values), accepted)
        return values.astype(np.float32)
    values = _decoded(path, None)
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.dtype.itemsize < 2:
        raise BadFile(path, "this is no depth map in millimetres", _described(values), accepted)
    return values.astype(np.float32) / np.float32(1000)


def _described(values: np.ndarray) -> str:
    return f"{values.dtype} {' x '.join(str(length) for length in values.shape)}"


def _shape(pixels: Tensor) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[2]}"


def _span(metres: np.ndarray) -> str:
    finite = metres[np.isfinite(metres)]
    return f"{finite.min():g} to {finite.max():g} metres" if finite.size else "no finite number"
