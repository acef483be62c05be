"""Read pictures from folders, tables and tars.

Unless a set is read without ``check``, every file is decoded once, which is the only way to know
that it can be. A file that cannot be used raises an error that names it, or is left out and
reported."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vpretrain.system.errors import Problem, UserError, abbreviated, user_error
from vpretrain.system.phases import phase
from vpretrain.vision.data.decoding import DEPTH_SUFFIXES, BadFile
from vpretrain.vision.data.files import AS_STORED, PROBLEMS_SHOWN, Files, Folder, Reading
from vpretrain.vision.data.images import IGNORE, Pictures
from vpretrain.vision.data.labels import LabelCode
from vpretrain.vision.data.picture_store import PictureStore

OnBadRow = Literal["stop", "skip"]
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"),
    *(".pgm", ".pbm", ".gif", ".avif", ".jp2", ".tga"),
)
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Endings of label maps; JPEG is left out because its compression changes the numbers."""
_ENDINGS = f"files ending in {', '.join(IMAGE_SUFFIXES)}"
_EIGEN_ROWS, _EIGEN_COLUMNS, _EIGEN_SIZE = (45, 471), (41, 601), (480, 640)


class FolderContents(NamedTuple):
    """At least one picture, the problems of the pictures left out, and a note on unread files."""

    pictures: Pictures
    skipped: list[Problem]
    unread: list[Problem]


def read_folder(
    images: Path | str,
    labels: Path | str | None = None,
    depth: Path | str | None = None,
    *,
    reading: Reading = AS_STORED,
    on_bad_row: OnBadRow = "stop",
    apart_from: Sequence[Path] = (),
    label_suffix: str = "",
) -> FolderContents:
    """Read the images of a folder and its subfolders, sorted by path, with the maps of their names.

    Args:
        images: folder of the images; ``labels`` and ``depth`` may be inside it.
        labels: folder of the label maps (see :data:`LABEL_SUFFIXES`), with the same subfolders; may
            be the folder of the images. Needs ``reading.code``.
        depth: folder of the depth maps: 16-bit ``.png`` in millimetres or ``.npy`` of
            floating-point metres.
        reading: how they are decoded.
        on_bad_row: "stop" raises if a picture cannot be used, "skip" leaves it out.
        apart_from: further subfolders to exclude, besides ``labels`` and ``depth``.
        label_suffix: suffix of a label map's name after the name of its image. Files with this
            suffix are not images of the set.

    Raises:
        UserError: a folder is missing or holds no images, two images share a map, pictures cannot
            be used (the first five are named, the rest counted), or all labels are of one class.
    """
    if labels is not None and reading.code is None:
        raise ValueError("label maps need a code: LabelCode(classes=...)")
    folder = Path(images)
    maps = [Path(each) for each in (labels, depth) if each is not None]
    paths, others = image_files(folder, [*maps, *apart_from], label_suffix)
    names = Counter(image.relative_to(folder).with_suffix("") for image in paths)
    files, problems = [], []
    for image in paths:
        name = image.relative_to(folder).with_suffix("")
        try:
            if maps and names[name] > 1:
                message = "images that differ in their endings alone would share one map: rename"
                raise BadFile(image, message, "", f"one image called {name}")
            map_name = name.with_name(name.name + label_suffix)
            label_map = _map_of(image, labels, map_name, LABEL_SUFFIXES, "label map")
            depth_map = _map_of(image, depth, name, DEPTH_SUFFIXES, "depth map")
            files.append(Files(image, label_map, depth_map))
        except BadFile as bad:
            problems.append(bad.problem)
    pictures = _read(folder, Folder(files, reading), problems, on_bad_row, keep=True)
    return FolderContents(pictures, problems, _unread(folder, others))


def read_ade20k(
    root: Path | str,
    split: str,
    *,
    reading: Reading = AS_STORED,
    on_bad_row: OnBadRow = "stop",
) -> FolderContents:
    """Read ADE20K (SceneParse150) from ``root/images/SPLIT`` and ``root/annotations/SPLIT``.

    In its label maps 0 is void and 1..150 are classes 0..149. See :func:`read_folder`."""
    images, labels = (Path(root) / part / split for part in ("images", "annotations"))
    reading = replace(reading, code=LabelCode(150, void=0, first=1))
    return read_folder(images, labels, reading=reading, on_bad_row=on_bad_row)


def read_nyuv2(
    root: Path | str,
    split: str,
    *,
    reading: Reading = AS_STORED,
    on_bad_row: OnBadRow = "stop",
) -> FolderContents:
    """Read NYUv2 depth from ``root/SPLIT/rgb`` and ``root/SPLIT/depth`` (PNG or ``.npy``).

    Images and depth maps are matched by name. See :func:`read_folder`."""
    images, depth = (Path(root) / split / part for part in ("rgb", "depth"))
    return read_folder(images, depth=depth, reading=reading, on_bad_row=on_bad_row)


def category_names(root: Path | str) -> list[str]:
    """Return the sorted names of the folders in a folder, each of which is a category.

    Raises:
        UserError: the folder is missing or holds no folders.
    """
    root = Path(root)
    _check_folder(root)
    if not (names := sorted(entry.name for entry in root.iterdir() if entry.is_dir())):
        message = "the folder holds no folders, and each is a category"
        raise user_error(str(root), message, accepted="CATEGORY/IMAGE")
    return names


def read_categories(
    root: Path | str,
    names: Sequence[str] = (),
    *,
    reading: Reading = AS_STORED,
    on_bad_row: OnBadRow = "stop",
    check: bool = True,
) -> FolderContents:
    """Read one folder of images per category, as in ImageNet.

    Categories count from 0 in the order of ``names``, some of which may have no folder here; empty:
    in the order of the folders' names. A folder that is not in ``names`` is refused. See
    :func:`read_folder`.

    Without ``check`` nothing is decoded beforehand, which would take too long for a
    million files; a file that cannot be read then stops the run when it is drawn."""
    root, here = Path(root), category_names(root)
    numbers = {name: number for number, name in enumerate(names or here)}
    if unknown := [name for name in here if name not in numbers]:
        message = (
            "these folders are not among the categories of the recipe's first labelled set of kind "
            "imagenet, by whose folders they are numbered: name a set with all of them first, or "
            "take these out"
        )
        raise user_error(
            str(root), message, value=abbreviated(unknown), accepted=abbreviated(numbers)
        )
    files: list[Files] = []
    others: Counter[str] = Counter()
    for name in here:
        paths, unread = image_files(root / name)
        files += [Files(image, category=numbers[name]) for image in paths]
        others += unread
    pictures = Folder(files, reading)
    if not check:
        return FolderContents(pictures, [], _unread(root, others))
    problems: list[Problem] = []
    decoded = _read(root, pictures, problems, on_bad_row, keep=False)
    return FolderContents(decoded, problems, _unread(root, others))


def eigen_crop(depth: Tensor) -> Tensor:
    """Return the Eigen crop, the part of NYUv2's images that depth is scored on.

    A bool mask of the shape of ``depth`` [..., H, W], True in rows 45..470 and columns 41..600 of
    480 x 640, scaled to its size."""
    mask = torch.zeros(depth.shape, dtype=torch.bool, device=depth.device)
    height, width = depth.shape[-2:]
    top, bottom = (round(row * height / _EIGEN_SIZE[0]) for row in _EIGEN_ROWS)
    left, right = (round(column * width / _EIGEN_SIZE[1]) for column in _EIGEN_COLUMNS)
    mask[..., top:bottom, left:right] = True
    return mask


def read_packed(
    where: str,
    samples: Iterable[Files | Problem],
    *,
    reading: Reading = AS_STORED,
    on_bad_row: OnBadRow = "stop",
    check: bool = True,
) -> FolderContents:
    """Read pictures inside larger files (see :mod:`vpretrain.vision.data.containers`).

    They are decoded on each access, and with ``check`` once beforehand. See :func:`read_folder`."""
    files: list[Files] = []
    problems: list[Problem] = []
    for sample in samples:
        if isinstance(sample, Problem):
            problems.append(sample)
        else:
            files.append(sample)
    if not files and not problems:
        message = "there are no pictures: fill the file, or name another"
        raise user_error(where, message, value="0 pictures", accepted="one picture or more")
    pictures = Folder(files, reading)
    if check:
        read = _read(where, pictures, problems, on_bad_row, keep=False)
        return FolderContents(read, problems, [])
    _refuse_bad(where, problems, len(files), on_bad_row)
    return FolderContents(pictures, problems, [])


def _refuse_bad(
    where: Path | str, problems: Sequence[Problem], good: int, on_bad_row: OnBadRow
) -> None:
    """Raise the problems of pictures if they are not to be skipped, or none is ``good``."""
    if problems and (on_bad_row == "stop" or not good):
        message = f"{len(problems)} of {good + len(problems)} pictures of {where} cannot be used"
        fix = "correct them, or " + ("leave them out" if good else "name another folder")
        accepted = "at least one picture that can be used"
        if good:
            accepted = "skip, which leaves them out and names them"
        last = Problem("data.on_bad_row", on_bad_row, accepted, f"{message}; {fix}")
        raise UserError(*problems[:PROBLEMS_SHOWN], last)


def _read(
    where: Path | str,
    pictures: Folder,
    problems: list[Problem],
    on_bad_row: OnBadRow,
    *,
    keep: bool,
) -> Pictures:
    """Decode every picture once and return the usable ones; the rest is added to ``problems``."""
    good: list[Files] = []
    origins: list[str] = []
    decoded = PictureStore(pictures.reading.memory_bytes)
    classes: set[int] = set()
    for files in phase(f"reading {where}", pictures.files, len(pictures)):
        try:
            picture = files.read(pictures.reading)
        except BadFile as bad:
            problems.append(bad.problem)
            continue
        good.append(files)
        origins.append(picture.origin)
        if picture.labels is not None:
            counts = torch.bincount(picture.labels.flatten())  # `unique` sorts all pixels
            classes.update(counts.nonzero()[:, 0].tolist())
        if keep:
            decoded.add(picture)
    _refuse_bad(where, problems, len(good), on_bad_row)
    _check_classes(where, pictures.reading.code, classes)
    return decoded.pictures() if keep else Folder(good, pictures.reading, origins)


def _check_classes(where: Path | str, code: LabelCode | None, classes: set[int]) -> None:
    """Refuse label maps with a single class, such as masks of 0 and 255, where 255 is void."""
    if code is None or len(labelled := classes - {IGNORE}) != 1:
        return
    written = code.written(labelled.pop())
    message = f"every labelled pixel of these pictures is {written}: one class cannot be learned"
    if IGNORE in classes and IGNORE in code.void_numbers:
        message += (
            f". Is {IGNORE} a class here, or does it mean that there is no label, as it is read "
            f"now? If a class, give classes: 2, label_values: [{written}, {IGNORE}]"
        )
    raise user_error(str(where), message, value="1 class", accepted="maps of two classes or more")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = f"there is no such folder (the path starts at {Path.cwd()})"
        if folder.exists():
            what = "this is a file"
        raise user_error(str(folder), f"{what}: correct the path", accepted="a folder")


def image_files(
    folder: Path, apart_from: Sequence[Path] = (), label_suffix: str = ""
) -> tuple[list[Path], Counter[str]]:
    """Return the images in and below a folder, sorted, and the number of other files by ending.

    Label maps, whose names end in ``label_suffix``, count as neither. Hidden files and folders are
    skipped silently. Linked folders are not followed, but counted among the others.

    Raises:
        UserError: the folder is missing or holds no images.
    """
    _check_folder(folder)
    maps = {path.resolve() for path in apart_from}
    images: list[Path] = []
    others: Counter[str] = Counter()
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = [n for n in folders if n[0] != "." and (here / n).resolve() not in maps]
        others["linked folders"] += sum((here / name).is_symlink() for name in folders)
        for name in names:
            suffix = Path(name).suffix.lower()
            if label_suffix and Path(name).stem.endswith(label_suffix):
                continue
            if suffix in IMAGE_SUFFIXES and name[0] != ".":
                images.append(here / name)
            elif name[0] != "." and name != "Thumbs.db":
                others[suffix or "no ending"] += 1
    others = +others
    if not images:
        message = "the folder holds no images: fill it, or name another"
        shown = f"0 images{', but ' if others else ''}{_counted(others)}"
        raise user_error(str(folder), message, value=shown, accepted=_ENDINGS)
    return sorted(images), others


def _unread(folder: Path, others: Counter[str]) -> list[Problem]:
    if not others:
        return []
    message = "some files are not read: their endings are not those of pictures"
    return [Problem(str(folder), _counted(others), _ENDINGS, message)]


def _counted(endings: Counter[str]) -> str:
    return abbreviated(f"{count} x {ending}" for ending, count in endings.most_common())


def _map_of(
    image: Path, folder: Path | str | None, name: Path, suffixes: Sequence[str], what: str
) -> Path | None:
    if folder is None:
        return None
    _check_folder(Path(folder))
    paths = [Path(folder) / name.with_name(name.name + suffix) for suffix in suffixes]
    for path in paths:
        for written in (path, path.with_suffix(path.suffix.upper())):
            if written.is_file():
                return written
    accepted = " or ".join(map(str, paths[:2]))
    near = [
        path for path in sorted(paths[0].parent.glob(f"{glob.escape(name.name)}*")) if path != image
    ]
    hint = ""
    if near and what == "label map":
        hint = f" ({near[0]} is there: label_suffix: {near[0].stem.removeprefix(name.name)}?)"
    message = f"this image has no {what}{hint}: add it, or take the image out"
    raise BadFile(image, message, "", accepted)
