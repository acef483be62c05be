"""Recipe sections of the evaluation: probes on frozen features, and retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vpretrain.config.recipe import Evaluate, Section
from vpretrain.vision.evaluation.probes import ProbeSettings
from vpretrain.vision.fields import Probe, Side


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
    probe: ProbeSettings = ProbeSettings()
    depth_probe: ProbeSettings | None = None
    """Settings of the depth probe; null: those of ``probe``."""
    neighbours: PositiveInt = 10
    """Number of neighbours of the ``knn`` probe."""
    retrieval: dict[str, RetrievalSection] = {}
    """Retrieval sets by name, ranked by the cosine similarity of features; each gives
    NAME_map_easy, _medium and _hard."""
