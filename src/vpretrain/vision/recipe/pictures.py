"""Recipe sections of picture sets: scenes, folders, tables, tars and known data sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vpretrain.config.place import FilePlace
from vpretrain.config.recipe import MadeUp, Section
from vpretrain.vision.fields import Level, Range, Side

VOID = 255
SOME_CLASSES = Field(min_length=2, max_length=VOID)
NO_CLASSES = "label maps need `classes`: say how many there are"
Class = Annotated[int, Field(ge=0, le=VOID)]
Colour = tuple[Level, Level, Level]


class PictureSet(Section):
    """Pictures of one origin; the stream does not use their labels."""

    skip: NonNegativeInt = 0
    """Pictures to leave out at the beginning."""
    count: PositiveInt | None = None
    """Pictures to take after the skipped ones; null: all."""
    size: Side | None = None
    """Height and width that labelled pictures are resized to; null: ``data.image_size`` for both.
    Ignored in the stream."""


class ScenePictures(PictureSet):
    """Rendered scenes with exact labels, depth and category (the embedded default)."""

    kind: Literal["scenes"]
    split: Literal["stream", "feedback", "dev", "test"] = "stream"
    """The splits share no scenes."""
    count: MadeUp
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        if self.size is not None and self.size[0] != self.size[1]:
            raise ValueError(
                f"scenes are square; give `size` two equal numbers, not {list(self.size)}"
            )
        return self


class LabelledPictures(PictureSet):
    """Pictures with label or depth maps, and the meaning of what is in them."""

    classes: Annotated[int, Field(ge=2, le=255)] | None = None
    """Number of classes in the label maps; not needed with ``label_values``, ``label_map`` or
    ``label_colours``."""
    void: NonNegativeInt | None = None
    """Number of pixels without a label, which is no class; 255 is void too, unless it is among
    ``label_values``."""
    first_class: NonNegativeInt = 0
    """Number that stands for class 0 in the label maps; class c is ``first_class + c``."""
    label_values: Annotated[list[NonNegativeInt], SOME_CLASSES] | None = None
    """Numbers that stand for classes 0, 1, ... in the label maps, such as [0, 255]; null: numbers
    from ``first_class``."""
    label_map: dict[int, Class] | None = None
    """Class of each number, such as ``{7: 0, 8: 1, 11: 1}``, with class 255 for no label; instead
    of ``label_values``."""
    label_colours: Annotated[list[Colour], SOME_CLASSES] | None = None
    """RGB colours of classes 0, 1, ..., such as [[0, 0, 0], [128, 64, 128]]; instead of
    ``label_values``."""
    other_labels: Literal["refuse", "void"] = "refuse"
    """Numbers and colours that stand for no class: ``refuse`` the picture, or treat the pixels as
    ``void`` (no label)."""
    depth_metres: Range = (1e-3, 10.0)
    """Valid depths: above the first, up to the second; others count as unknown. Predictions of the
    probe are clipped to the widest range of the recipe's depth sets."""

    @model_validator(mode="after")
    def _has_one_code(self) -> Self:
        given = {
            "label_values": self.label_values is not None,
            "label_map": self.label_map is not None,
            "label_colours": self.label_colours is not None,
        }
        if sum(given.values()) > 1:
            raise ValueError(f"give one of {' and '.join(key for key in given if given[key])}")
        if self.void is not None and self.label_colours is not None:
            raise ValueError(
                "`void` is a number, and these maps have colours: leave it out; with "
                "`other_labels: void` every colour that is not listed is no label"
            )
        if self.first_class and any(given.values()):
            raise ValueError(
                "`first_class` is the first of numbers that follow each other, and here the "
                "classes are listed: leave it out"
            )
        if self.label_values is not None and len({*self.label_values}) != self.class_count:
            raise ValueError(
                f"label_values has {len({*self.label_values})} distinct numbers for "
                f"{self.class_count} classes; give one a class"
            )
        if self.label_colours is not None and len({*self.label_colours}) != self.class_count:
            raise ValueError(
                f"label_colours has {len({*self.label_colours})} distinct colours for "
                f"{self.class_count} classes; give one a class"
            )
        if self.label_map is not None and self.class_count is not None:
            outside = {c for c in self.label_map.values() if self.class_count <= c != VOID}
            if outside or self.class_count < 2:
                raise ValueError(
                    f"label_map has classes {sorted({*self.label_map.values()} - {VOID})}, "
                    f"and there are {self.class_count}; two or more count from 0"
                )
        return self

    @model_validator(mode="after")
    def _void_is_no_class(self) -> Self:
        numbers: Iterable[int] = self.label_values or ()
        if self.label_map is not None:
            numbers = [number for number, at in self.label_map.items() if at != VOID]
        elif self.label_values is None and self.label_colours is None:
            numbers = range(self.first_class, self.first_class + (self.class_count or 0))
        if self.void is not None and self.void in numbers:
            raise ValueError(
                f"void is {self.void}, which is also the number of a class; give the classes "
                "without it: `first_class` and `classes`, or `label_values`"
            )
        return self

    @property
    def class_count(self) -> int | None:
        """Number of classes in the label maps; None if the recipe does not give it."""
        listed = self.label_values or self.label_colours
        if self.classes is None and listed is not None:
            return len(listed)
        if self.classes is None and self.label_map is not None:
            return 1 + max({*self.label_map.values()} - {VOID}, default=-1)
        return self.classes


class FolderPictures(LabelledPictures):
    """The images of a folder, each with the label and depth map of the same name."""

    kind: Literal["folder"]
    images: Path
    """Folder of the images, relative to ``data.root``."""
    labels: Path | None = None
    """Folder of the label maps (``.png`` or another lossless format), relative to ``data.root``;
    may be that of the images. Needs the number of classes."""
    label_suffix: str = ""
    """Suffix of a label map's name: ``_mask`` if ``x_mask.png`` belongs to ``x.jpg``. Files with it
    are not read as images."""
    depth: Path | None = None
    """Folder of the depth maps (16-bit ``.png`` in millimetres, or ``.npy`` of floating-point
    metres), relative to ``data.root``."""

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if self.labels is not None and self.class_count is None:
            raise ValueError(NO_CLASSES)
        if self.labels == self.images and not self.label_suffix:
            raise ValueError("label maps beside their images need a `label_suffix`, such as _mask")
        return self


class PackedPictures(LabelledPictures):
    """Pictures inside larger files, decoded when they are drawn."""

    path: FilePlace
    """File relative to ``data.root``, or a URL that fsspec reads; a pattern takes all matching
    files, sorted."""
    check: bool = True
    """Whether every picture is decoded before the run; if not, one of the stream that cannot be
    read stops the run when it is drawn."""
    labels: str | None = None
    """Where label maps are. Needs the number of classes."""

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if self.labels is not None and self.class_count is None:
            raise ValueError(NO_CLASSES)
        return self


class TablePictures(PackedPictures):
    """Pictures in table columns that hold the bytes of image files, as saved by ``datasets``."""

    kind: Literal["parquet", "arrow"]
    """File format; ``arrow`` also reads folders of ``save_to_disk``."""
    image: str = "image"
    """Column of the pictures."""
    labels: str | None = None
    """Column of the label maps. Needs the number of classes."""
    depth: str | None = None
    """Column of the depth maps, 16-bit PNGs in millimetres."""
    category: str | None = None
    """Column of the category, a whole number from 0."""


class TarPictures(PackedPictures):
    """Pictures in WebDataset tars, where members that differ only in their endings are a sample."""

    kind: Literal["webdataset"]
    """WebDataset tars; ``path`` may have ranges in braces (``shard-{0000..0099}.tar``), and
    ``.tar.gz`` is read too."""
    image: str = "jpg;jpeg;png;webp"
    """Endings of images, separated by semicolons; the first one that a sample has is used."""
    labels: str | None = None
    """Ending of label maps, such as ``seg.png``. Needs the number of classes."""
    depth: str | None = None
    """Ending of depth maps, such as ``depth.png`` or ``depth.npy``."""
    category: str | None = None
    """Ending of the category, a whole number from 0, such as ``cls``."""


class Ade20kPictures(PictureSet):
    """ADE20K (SceneParse150): ``images/SPLIT`` and ``annotations/SPLIT``."""

    kind: Literal["ade20k"]
    path: Path = Path("ade20k")
    """Folder of the data set, relative to ``data.root``."""
    split: Literal["training", "validation"] = "training"


class NyuV2Pictures(PictureSet):
    """NYUv2 depth: ``SPLIT/rgb`` and ``SPLIT/depth``."""

    kind: Literal["nyuv2"]
    path: Path = Path("nyuv2")
    """Folder of the data set, relative to ``data.root``."""
    split: str = "train"
    eigen_crop: bool = False
    """Whether depths outside the Eigen crop count as unknown, the convention for scoring."""


class ImageNetPictures(PictureSet):
    """One folder of images per category, as in ImageNet.

    Categories are numbered by the sorted folders of the recipe's first labelled set of this kind; a
    later one may lack some."""

    kind: Literal["imagenet"]
    path: Path = Path("imagenet/train")
    """Folder that holds the folders of the categories, relative to ``data.root``."""
    check: bool = False
    """Whether every image is decoded before the run; if not, one of the stream that cannot be read
    stops the run when it is drawn."""


Pictures = Annotated[
    ScenePictures
    | FolderPictures
    | TablePictures
    | TarPictures
    | Ade20kPictures
    | NyuV2Pictures
    | ImageNetPictures,
    Field(discriminator="kind"),
]
