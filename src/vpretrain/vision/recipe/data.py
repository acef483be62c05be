"""The stream, the feedback sets with their heads, and the splits that are evaluated on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import Section
from vpretrain.vision.feedback.gradient import HeadSettings
from vpretrain.vision.recipe.common import Downstream, Level
from vpretrain.vision.recipe.pictures import Pictures


class Source(Section):
    """One source of the stream."""

    name: str
    weight: PositiveFloat = 1.0
    """Share of the stream's pictures, relative to the other sources."""
    pictures: Pictures


class FeedbackSet(Section):
    """Labelled pictures of one origin, drawn once and for all: the same in every arm and seed."""

    pictures: Pictures
    train: PositiveInt
    """Pictures that the heads train on."""
    meta: PositiveInt
    """Other pictures, that g_down is taken on."""


class FeedbackHead(Section):
    """The heads that stand between features and labels (G.2, part i)."""

    steps: NonNegativeInt = 4
    """Updates of every head before each meta step, on frozen features."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    learning_rate: PositiveFloat = 5e-3
    warmup_steps: NonNegativeInt = 200
    """Updates before the run starts."""
    blocks: PositiveInt = 1
    """The heads read the outputs of this many last blocks, side by side."""

    def settings(self) -> HeadSettings:
        """As the feedback takes them."""
        return HeadSettings(self.steps, self.batch_size, self.learning_rate)


class Feedback(Section):
    """The labelled pictures that steer."""

    sets: list[FeedbackSet] = Field(min_length=1)
    tasks: dict[Downstream, PositiveFloat] = Field(min_length=1)
    """Weight of each task's loss (a_seg and a_dep of eq. 51); a task uses the pictures that have
    targets for it."""
    batch_size: PositiveInt = 16
    """Pictures of each task in one meta batch."""
    batches: Annotated[int, Field(ge=2)] = 2
    """Meta batches used at a meta step; g_down is their mean, and their agreement says how far to
    trust it."""
    head: FeedbackHead = FeedbackHead()


class Data(Section):
    """Where pictures come from."""

    root: Path = Path()
    """Folder that relative paths start from."""
    image_size: PositiveInt
    """Side in pixels of the stream's pictures, which crops are cut from."""
    load_size: PositiveInt | None = None
    """Shorter side that a picture of the stream is scaled to before a window is cut; null:
    ``image_size``."""
    batch_size: PositiveInt
    """Pictures in a batch of the stream."""
    meta_batch_size: PositiveInt | None = None
    """Pictures in a batch of the designer's own, unlabeled, from the same sources in another order
    (G.2, the paper's meta SSL batch); null: the designer learns from the learner's batch."""
    stream: list[Source] = Field(min_length=1)
    feedback: Feedback
    evaluation: dict[str, list[Pictures]]
    """Labelled pictures by split: ``train`` is what probes learn from, ``evaluate.split`` what they
    are scored on."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What becomes of pictures that cannot be used: an error, or they are left out, counted and
    named."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What becomes of exact copies in the stream: they stay and are counted in a warning, or all
    but the first are left out. (A source that is not decoded beforehand is not searched.)"""
    memory_gib: PositiveFloat = 8.0
    """For the decoded pictures of one set; what is beyond it is in a temporary file."""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """R, G and B behind transparent pixels; white."""
    white_level: PositiveFloat | None = None
    """The number that is white in grey pictures of 16 bits or floats, such as 4095 or 1.0; null:
    65535 in 16 bits, and pictures of which that cannot be are refused."""

    @model_validator(mode="after")
    def _loads_enough(self) -> Self:
        if self.load_size is not None and self.load_size < self.image_size:
            raise ValueError(
                f"data.load_size is {self.load_size}, smaller than data.image_size, "
                f"{self.image_size}"
            )
        return self
