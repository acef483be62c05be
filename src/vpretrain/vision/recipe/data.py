"""Recipe sections of the stream, the feedback sets with their heads, and the evaluation splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vpretrain.config.recipe import Section
from vpretrain.vision.feedback.gradient import HeadSettings
from vpretrain.vision.fields import Downstream, Level
from vpretrain.vision.recipe.pictures import Pictures


class Source(Section):
    """One source of the stream."""

    name: str
    weight: PositiveFloat = 1.0
    """Fraction of the stream's pictures, relative to the other sources."""
    pictures: Pictures


class FeedbackSet(Section):
    """Labelled pictures of one origin, drawn once: the same in every arm and for every seed."""

    pictures: Pictures
    train: PositiveInt
    """Number of pictures that the heads train on."""
    meta: PositiveInt
    """Number of other pictures, on which g_down is computed."""


class Feedback(Section):
    """The labelled pictures that steer."""

    sets: list[FeedbackSet] = Field(min_length=1)
    tasks: dict[Downstream, PositiveFloat] = Field(min_length=1)
    """Weight of each task's loss (a_seg and a_dep of eq. 51); a task uses the pictures that have
    targets for it."""
    batch_size: PositiveInt = 16
    """Pictures of each task in one meta batch."""
    batches: Annotated[int, Field(ge=2)] = 2
    """Meta batches per meta step; g_down is the mean of their gradients, and their agreement is its
    reliability."""
    head: HeadSettings = HeadSettings()


class Data(Section):
    """Where pictures come from."""

    root: Path = Path()
    """Folder that relative paths start from."""
    image_size: PositiveInt
    """Side in pixels of the stream's square pictures, from which crops are cut."""
    load_size: PositiveInt | None = None
    """Shorter side in pixels that a picture of the stream is scaled to before it is cropped to
    ``image_size``; null: ``image_size``."""
    batch_size: PositiveInt
    """Pictures in a batch of the stream."""
    meta_batch_size: PositiveInt | None = None
    """Pictures in the designer's own unlabeled batch, from the same sources in another order (G.2,
    the paper's meta SSL batch); null: the designer uses the learner's batch."""
    stream: list[Source] = Field(min_length=1)
    feedback: Feedback
    evaluation: dict[str, list[Pictures]]
    """Labelled pictures by split: probes train on ``train`` and are scored on
    ``evaluate.split``."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Pictures that cannot be used: ``stop`` raises an error, ``skip`` leaves them out and reports
    them."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Exact copies in the stream: ``keep`` counts them in a warning, ``drop`` leaves out all but
    the first. Sources that are not decoded beforehand are not searched."""
    memory_gib: PositiveFloat = 8.0
    """Memory in GiB for the decoded pictures of one set; the rest goes to a temporary file."""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """RGB colour (0 to 255) behind transparent pixels."""
    white_level: PositiveFloat | None = None
    """Value of white in grey pictures of 16 bits or floats, such as 4095 or 1.0; null: 65535 in 16
    bits, and pictures whose white level is unclear are refused."""

    @model_validator(mode="after")
    def _loads_enough(self) -> Self:
        if self.load_size is not None and self.load_size < self.image_size:
            raise ValueError(
                f"data.load_size is {self.load_size}, smaller than data.image_size, "
                f"{self.image_size}"
            )
        return self
