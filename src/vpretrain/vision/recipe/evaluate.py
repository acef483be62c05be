"""The probes on frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vpretrain.config.recipe import Evaluate, Section
from vpretrain.vision.evaluation.probes import ProbeSettings
from vpretrain.vision.recipe.common import Probe, Side


class ProbeSection(Section):
    """How a linear-BN head is trained on frozen features, before it is scored."""

    steps: PositiveInt = 500
    """The paper's: 20,000."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 0.05
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip_norm: PositiveFloat = 1.0
    train_size: Side | None = None
    """Height and width at which the loss is taken in training; scores are at the pictures' size in
    any case."""
    refits: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """Seeds, one a fit; scores are means over the fits."""

    def settings(self) -> ProbeSettings:
        """As the probes take them."""
        return ProbeSettings(**self.model_dump())


class RetrievalSection(Section):
    """Revisited Oxford or Paris, or another set in that form: which images of a database show what
    a query shows."""

    truth: Path
    """Ground truth as JSON (see :func:`vpretrain.vision.evaluation.retrieval.read_retrieval`),
    relative to ``data.root``."""
    images: Path
    """Folder of the ``.jpg`` images of database and queries, likewise."""
    size: Side
    """Height and width that every image is brought to, after a query has been cut out."""
    pooling: Literal["patches", "backbone"] = "patches"
    """What stands for an image: the mean over its patches (the paper's), or what the backbone pools
    (its CLS token, where it has one)."""


class VisionEvaluate(Evaluate):
    """What is measured, on which pictures."""

    split: str = "test"
    """One of ``data.evaluation``: settings are chosen on dev and reported once on test."""
    probes: list[Probe] = Field(default=["segmentation"], min_length=1)
    """What the frozen features are asked for."""
    blocks: PositiveInt = 1
    """Probes read the outputs of this many last blocks, side by side."""
    class_balanced: bool = False
    """Whether the segmentation probe's training loss counts every class alike; scores never do."""
    memory_gib: PositiveFloat = 8.0
    """For the frozen features of one set of pictures. Features of patches that need more are
    computed anew for every batch of a probe, which takes that many passes of the backbone more."""
    probe: ProbeSection = ProbeSection()
    depth_probe: ProbeSection | None = None
    """Where depth is to be probed otherwise; null: as the rest."""
    neighbours: PositiveInt = 10
    """Of ``knn``."""
    retrieval: dict[str, RetrievalSection] = {}
    """By name: sets that are searched by the cosine of their features; each gives NAME_map_easy,
    _medium and _hard."""
