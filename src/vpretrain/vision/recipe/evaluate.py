"""Recipe sections of the evaluation: probes on frozen features, and retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vpretrain.config.recipe import Evaluate, Section
from vpretrain.vision.evaluation.probes import ProbeSettings
from vpretrain.vision.recipe.common import Probe, Side


class ProbeSection(Section):
    """Training of a linear-BN head on frozen features."""

    steps: PositiveInt = 500
    """Training steps; the paper takes 20,000."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 0.05
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip_norm: PositiveFloat = 1.0
    train_size: Side | None = None
    """Height and width at which the training loss is computed; scores are always at the size of the
    pictures."""
    refits: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """Seeds; the probe is fitted once per seed, and scores are means over the fits."""

    def settings(self) -> ProbeSettings:
        """Return the settings as the probes take them."""
        return ProbeSettings(**self.model_dump())


class RetrievalSection(Section):
    """Image retrieval on Revisited Oxford or Paris, or another set in that format."""

    truth: Path
    """Ground truth as JSON (see :func:`vpretrain.vision.evaluation.retrieval.read_retrieval`),
    relative to ``data.root``."""
    images: Path
    """Folder of the ``.jpg`` images of database and queries, relative to ``data.root``."""
    size: Side
    """Height and width that every image is resized to, after queries are cropped."""
    pooling: Literal["patches", "backbone"] = "patches"
    """Image descriptor: the mean over patches (the paper's), or the backbone's pooled output (its
    CLS token, where it has one)."""


class VisionEvaluate(Evaluate):
    """Which scores are measured on which pictures."""

    split: str = "test"
    """The split of ``data.evaluation`` that is scored: choose settings on dev, report once on
    test."""
    probes: list[Probe] = Field(default=["segmentation"], min_length=1)
    """Tasks that the frozen features are probed for."""
    blocks: PositiveInt = 1
    """Probes read the concatenated outputs of this many last blocks."""
    class_balanced: bool = False
    """Whether the segmentation probe's training loss weights all classes equally; scores do not
    change."""
    memory_gib: PositiveFloat = 8.0
    """Memory in GiB for the frozen features of one set of pictures. Patch features that need more
    are recomputed for every batch of a probe, at the cost of one backbone pass each."""
    probe: ProbeSection = ProbeSection()
    depth_probe: ProbeSection | None = None
    """Settings of the depth probe; null: those of ``probe``."""
    neighbours: PositiveInt = 10
    """Number of neighbours of the ``knn`` probe."""
    retrieval: dict[str, RetrievalSection] = {}
    """Retrieval sets by name, ranked by the cosine similarity of features; each gives
    NAME_map_easy, _medium and _hard."""
