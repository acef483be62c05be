"""Pictures of one origin: scenes, folders, and the layouts of known data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vpretrain.config.place import FilePlace
from vpretrain.config.recipe import MadeUp, Section
from vpretrain.vision.recipe.common import Level, Range, Side

VOID = 255
Class = Annotated[int, Field(ge=0, le=VOID)]
Colour = tuple[Level, Level, Level]


class PictureSet(Section):
    """Pictures of one origin; those of the stream are used without their labels."""

    skip: NonNegativeInt = 0
    """Pictures left out at the beginning."""
    count: PositiveInt | None = None
    """Pictures taken after those; null takes all."""
    size: Side | None = None
    """Height and width that labelled pictures are brought to; null: ``data.image_size`` squared.
    The stream has its own."""


class ScenePictures(PictureSet):
    """Rendered scenes with exact labels, depth and category (the embedded default)."""

    kind: Literal["scenes"]
    split: Literal["stream", "feedback", "dev", "test"] = "stream"
    """Disjoint."""
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
    """Pictures with label maps whose numbers or colours mean what the recipe says."""

    classes: Annotated[int, Field(ge=2, le=255)] | None = None
    """How many classes the label maps have; it follows from ``label_map`` or ``label_colours``."""
    void: NonNegativeInt | None = None
    """The number of pixels without a label, besides 255, which means that unless it is among
    ``label_values``."""
    first_class: NonNegativeInt = 0
    """The number that class 0 is written as."""
    label_values: list[NonNegativeInt] | None = None
    """The numbers that classes 0, 1, ... are written as, such as [0, 255]; null: ``first_class``
    and those after it."""
    label_map: dict[int, Class] | None = None
    """Or the class of each number, ``{7: 0, 8: 1, 11: 1}``, with 255 for no label."""
    label_colours: list[Colour] | None = None
    """Or the colours of classes 0, 1, ..., each as R, G, B: [[0, 0, 0], [128, 64, 128]]."""
    other_labels: Literal["refuse", "void"] = "refuse"
    """What becomes of numbers and colours that are none of these: a problem, or no label."""

    @model_validator(mode="after")
    def _has_one_code(self) -> Self:
        given = {
            "label_values": self.label_values is not None,
            "label_map": self.label_map is not None,
            "label_colours": self.label_colours is not None,
        }
        if sum(given.values()) > 1:
            raise ValueError(f"give one of {' and '.join(key for key in given if given[key])}")
        if self.label_values is not None and len(set(self.label_values)) != self.classes:
            raise ValueError(
                f"label_values has {len(set(self.label_values))} distinct numbers for "
                f"{self.classes} classes; give one a class"
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

    @property
    def class_count(self) -> int | None:
        """Of the label maps; None where there are none."""
        if self.classes is None and self.label_colours is not None:
            return len(self.label_colours)
        if self.classes is None and self.label_map is not None:
            return 1 + max({*self.label_map.values()} - {VOID}, default=-1)
        return self.classes


class FolderPictures(LabelledPictures):
    """The images of a folder, each with the maps of the same name."""

    kind: Literal["folder"]
    images: Path
    """Relative to ``data.root``, as the two below."""
    labels: Path | None = None
    """Folder of label maps (``.png``, or another lossless kind); needs to know the classes. It may
    be that of the images."""
    label_suffix: str = ""
    """What the names of label maps have beyond those of their images: ``_mask`` where
    ``x_mask.png`` belongs to ``x.jpg``. Such files are no pictures."""
    depth: Path | None = None
    """Folder of depth maps: ``.png`` of 16 bits in millimetres, or ``.npy`` of floating metres."""
    depth_metres: Range = (1e-3, 10.0)
    """Depths that are not above the first or are above the second count as not known."""

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if self.labels is not None and self.class_count is None:
            raise ValueError("label maps need `classes`: say how many there are")
        if self.labels == self.images and not self.label_suffix:
            raise ValueError("label maps beside their images need a `label_suffix`, such as _mask")
        return self


class PackedPictures(LabelledPictures):
    """Pictures within larger files; they are decoded when they are drawn."""

    path: FilePlace
    """Relative to ``data.root``; a pattern takes every file that matches, sorted. Or a URL that
    fsspec reads."""
    check: bool = True
    """Whether every picture is decoded before the run; if not, one that cannot be read stops the
    run when it is drawn."""
    depth_metres: Range = (1e-3, 10.0)
    """As for folders."""


class TablePictures(PackedPictures):
    """Pictures in the columns of tables, as ``datasets`` saves them: the bytes of image files."""

    kind: Literal["parquet", "arrow"]
    """``arrow`` reads folders of ``save_to_disk`` too."""
    image: str = "image"
    """The column of the pictures."""
    labels: str | None = None
    """The column of the label maps."""
    depth: str | None = None
    """The column of the depth maps, PNGs of 16 bits in millimetres."""
    category: str | None = None
    """The column of the category, a whole number from 0."""


class TarPictures(PackedPictures):
    """Pictures in tars of WebDataset: the members of one name are one sample."""

    kind: Literal["webdataset"]
    """``path`` may have ranges in braces: ``shard-{0000..0099}.tar``; ``.tar.gz`` is read too."""
    image: str = "jpg;jpeg;png;webp"
    """What the names of pictures end in, the first that a sample has."""
    labels: str | None = None
    """What those of label maps end in: ``seg.png``."""
    depth: str | None = None
    """What those of depth maps end in: ``depth.png``, or ``depth.npy``."""
    category: str | None = None
    """What those of categories end in, whole numbers from 0: ``cls``."""


class Ade20kPictures(PictureSet):
    """ADE20K as in SceneParse150: ``images/SPLIT`` and ``annotations/SPLIT``."""

    kind: Literal["ade20k"]
    path: Path = Path("ade20k")
    """Relative to ``data.root``."""
    split: Literal["training", "validation"] = "training"


class NyuV2Pictures(PictureSet):
    """NYUv2 depth: ``SPLIT/rgb`` and ``SPLIT/depth``."""

    kind: Literal["nyuv2"]
    path: Path = Path("nyuv2")
    """Relative to ``data.root``."""
    split: str = "train"
    eigen_crop: bool = False
    """Whether depths outside of the Eigen crop count as not known, as they do where depth is
    scored."""


class ImageNetPictures(PictureSet):
    """One folder of images a category, as ImageNet has it."""

    kind: Literal["imagenet"]
    path: Path = Path("imagenet/train")
    """Relative to ``data.root``; holds the categories' folders."""
    check: bool = False
    """Whether every image is decoded before the run; if not, one that cannot be read stops the run
    when it is drawn."""


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
