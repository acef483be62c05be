"""Recipe sections of the learner: backbone, crops, head or predictor, and its preparation."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from vpretrain.config.recipe import Layers, LearnerBase, Section
from vpretrain.vision.data.crops import CropSettings
from vpretrain.vision.dino.learner import DinoSettings
from vpretrain.vision.fields import Momentum
from vpretrain.vision.ijepa.blocks import BlockSettings


class DinoHeadShape(Section):
    """DINO's projection head."""

    hidden: list[PositiveInt] = [2048, 2048]
    """Widths of the hidden layers."""
    bottleneck: PositiveInt = 256
    """Dimension of the prototypes."""
    prototypes: PositiveInt = 8192
    """Number of prototypes, the output dimension."""


class PredictorShape(Section):
    """I-JEPA's predictor."""

    width: PositiveInt = 384
    depth: Layers = 6
    heads: PositiveInt = 12


class Prepare(Section):
    """Unsteered training on the stream that makes the initial learner without a checkpoint."""

    config: dict[str, Any]
    """A ``transformers`` configuration, including its ``model_type``."""
    steps: PositiveInt
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate; decays to a hundredth of it on a cosine."""
    warmup_steps: NonNegativeInt = 100
    weight_decay: NonNegativeFloat = 0.04
    teacher_momentum: Momentum = 0.99
    """EMA momentum of the teacher (or target encoder) at the start; rises to 1."""
    seed: NonNegativeInt = 0


class LearnerSection(DinoSettings, LearnerBase):
    """The model whose pretraining is continued."""

    kind: Literal["dino", "ijepa"] = "dino"
    """The self-supervised method: ``dino`` matches views, ``ijepa`` predicts masked blocks."""
    model: str | None = None
    """A local folder, a hub id, or a packaged checkpoint; null: the learner of ``prepare``, made on
    first use."""
    config: dict[str, Any] | None = None
    """A ``transformers`` configuration for random weights, instead of ``model`` (benchmarks)."""
    prepare: Prepare | None = None
    weight_decay: NonNegativeFloat = 0.04
    aligned_blocks: PositiveInt | Literal["all"] = 2
    """The aligned parameters S: this many last blocks and the final norm."""
    aligned_patterns: list[str] = []
    """Shell patterns over parameter names that select S, instead of ``aligned_blocks`` (DINO)."""
    crops: CropSettings = CropSettings()
    """Views of DINO; I-JEPA uses only ``mean`` and ``std``."""
    head: DinoHeadShape = DinoHeadShape()
    head_warmup_steps: NonNegativeInt = 500
    """Training steps of a fresh head (I-JEPA: predictor) on frozen features, before the backbone
    trains; skipped if the checkpoint comes with its own."""
    head_warmup_learning_rate: PositiveFloat = 1e-3
    predictor: PredictorShape = PredictorShape()
    blocks: BlockSettings = BlockSettings()
    error: Literal["smooth_l1", "squared"] = "smooth_l1"
    """I-JEPA's prediction loss."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        made = self.prepare is not None and self.model is None
        if (self.model is not None) + (self.config is not None) + made != 1:
            raise ValueError(
                "give one of `model` (a checkpoint), `config` (random weights) or `prepare` "
                "(made on first use)"
            )
        if self.kind == "ijepa" and (self.aligned_patterns or self.aligned_blocks == "all"):
            raise ValueError(
                "kind ijepa takes `aligned_blocks` as a number, and no `aligned_patterns`"
            )
        return self

    @property
    def unread(self) -> list[str]:
        """The keys with other values than their defaults that only the other kind reads."""
        others = _KEYS_OF["ijepa" if self.kind == "dino" else "dino"]
        fields = type(self).model_fields
        return [name for name in others if getattr(self, name) != fields[name].default]


_KEYS_OF = {
    "dino": (
        "student_temperature",
        "teacher_temperature",
        "center_momentum",
        "centering",
        "teacher_views",
        "local_views_in_value",
    ),
    "ijepa": ("predictor", "blocks", "error"),
}
"""The keys that one kind of learner alone reads."""
