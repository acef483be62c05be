"""Pictures of one origin: scenes, folders, and the layouts of known data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vpretrain.config.recipe import MadeUp, Section
from vpretrain.vision.recipe.common import Range, Side


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


class FolderPictures(PictureSet):
    """The images of a folder, each with the maps of the same name."""

    kind: Literal["folder"]
    images: Path
    """Relative to ``data.root``, as the two below."""
    labels: Path | None = None
    """Folder of label maps (``.png``); needs ``classes``."""
    depth: Path | None = None
    """Folder of depth maps: ``.png`` of 16 bits in millimetres, or ``.npy`` of floating metres."""
    classes: Annotated[int, Field(ge=2, le=255)] | None = None
    """How many classes the label maps have."""
    void: NonNegativeInt | None = None
    """The number of pixels without a label, besides 255, which means that unless it is among
    ``label_values``."""
    first_class: NonNegativeInt = 0
    """The number that class 0 is written as."""
    label_values: list[NonNegativeInt] | None = None
    """The numbers that classes 0, 1, ... are written as, such as [0, 255]; null: ``first_class``
    and those after it."""
    depth_metres: Range = (1e-3, 10.0)
    """Depths that are not above the first or are above the second count as not known."""

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if self.labels is not None and self.classes is None:
            raise ValueError("label maps need `classes`: say how many there are")
        if self.label_values is not None and len(set(self.label_values)) != self.classes:
            raise ValueError(
                f"label_values has {len(set(self.label_values))} distinct numbers for "
                f"{self.classes} classes; give one a class"
            )
        return self


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
    ScenePictures | FolderPictures | Ade20kPictures | NyuV2Pictures | ImageNetPictures,
    Field(discriminator="kind"),
]
