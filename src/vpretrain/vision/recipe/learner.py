"""The backbone that is continued: its crops, heads or predictor, and how it is made where no
checkpoint is at hand."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from vpretrain.config.recipe import Layers, LearnerBase, Section
from vpretrain.system.errors import UserError
from vpretrain.vision.data.crops import MultiCrop
from vpretrain.vision.data.images import IMAGENET_MEAN, IMAGENET_STD
from vpretrain.vision.ijepa.blocks import BlockSettings
from vpretrain.vision.recipe.common import Channels, Momentum, Range, Share


class Crops(Section):
    """Views of a batch; the paper's sizes and counts by default."""

    global_size: PositiveInt = 224
    """Side of a global view in pixels."""
    local_size: PositiveInt = 96
    """Side of a local view in pixels."""
    global_count: PositiveInt = 2
    local_count: NonNegativeInt = 6
    global_scale: Range = (0.32, 1.0)
    """Share of the picture's area that a global view is cut from."""
    local_scale: Range = (0.05, 0.32)
    """The same for a local view."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    jitter: Share = 0.8
    """Probability that the colours are changed."""
    brightness: NonNegativeFloat = 0.4
    """Largest relative change of brightness."""
    contrast: NonNegativeFloat = 0.4
    """Largest relative change of contrast."""
    saturation: NonNegativeFloat = 0.2
    """Largest relative change of saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest change of hue, in turns of the colour circle."""
    grayscale: Share = 0.2
    """Probability that the colours are taken out."""
    blur: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    """Probabilities of a Gaussian blur: first global view, other global views, local views."""
    blur_sigma: Range = (0.1, 2.0)
    """Lowest and highest standard deviation of that blur, in pixels of the view."""
    solarise: Share = 0.2
    """Probability that bright pixels are inverted, in global views after the first."""
    mean: Channels = IMAGENET_MEAN
    """Mean of R, G, B that views, and the pictures of feedback and probes, are normalised with."""
    std: Channels = IMAGENET_STD
    """Standard deviation of R, G, B, likewise."""

    def settings(self) -> MultiCrop:
        """As the learner takes them."""
        return MultiCrop(**self.model_dump())

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        self.settings()
        return self


class DinoHeadShape(Section):
    """DINO's projection head."""

    hidden: list[PositiveInt] = [2048, 2048]
    """Widths of its hidden layers."""
    bottleneck: PositiveInt = 256
    """Width of the space that the prototypes live in."""
    prototypes: PositiveInt = 8192
    """Output dimension."""


class PredictorShape(Section):
    """I-JEPA's predictor."""

    width: PositiveInt = 384
    depth: Layers = 6
    heads: PositiveInt = 12


class Blocks(Section):
    """I-JEPA's block masks."""

    targets: PositiveInt = 4
    """Target blocks an image."""
    target_scale: Range = (0.15, 0.2)
    """Share of the grid that a target block covers."""
    target_aspect: Range = (0.75, 1.5)
    """Height over width of a target block."""
    context_scale: Range = (0.85, 1.0)
    """Share of the grid that the context block covers before the targets are cut out of it."""
    least_context_patches: PositiveInt = 4
    """What must be left of the context."""

    def settings(self) -> BlockSettings:
        """As the learner takes them."""
        return BlockSettings(**self.model_dump())

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        try:
            self.settings()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self


class Prepare(Section):
    """How the learner that steering starts from is made, where no checkpoint is at hand: plain
    training on the stream."""

    config: dict[str, Any]
    """A ``transformers`` configuration with its ``model_type``."""
    steps: PositiveInt
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-3
    """At its peak; falls to a hundredth on a cosine."""
    warmup_steps: NonNegativeInt = 100
    weight_decay: NonNegativeFloat = 0.04
    teacher_momentum: Momentum = 0.99
    """Of the teacher (or target encoder) at the start; rises to 1."""
    seed: NonNegativeInt = 0


class LearnerSection(LearnerBase):
    """The model that is continued."""

    kind: Literal["dino", "ijepa"] = "dino"
    """The self-supervised task: matching views, or predicting hidden blocks."""
    model: str | None = None
    """A local folder, a hub id, or a packaged checkpoint; null uses (and on first use makes) what
    ``prepare`` says."""
    config: dict[str, Any] | None = None
    """A ``transformers`` configuration for random weights, in the place of ``model``
    (benchmarks)."""
    prepare: Prepare | None = None
    weight_decay: NonNegativeFloat = 0.04
    aligned_blocks: PositiveInt | Literal["all"] = 2
    """S: the last so many blocks with the final norm."""
    aligned_patterns: list[str] = []
    """S by shell patterns over parameter names, in the place of ``aligned_blocks`` (DINO)."""
    crops: Crops = Crops()
    """DINO: the views; I-JEPA reads nothing of this but ``mean`` and ``std``."""
    head: DinoHeadShape = DinoHeadShape()
    head_warmup_steps: NonNegativeInt = 500
    """Steps of a fresh head (I-JEPA: predictor) on frozen features, before the backbone moves; they
    are not released with backbones. A checkpoint that comes with its own goes on without them."""
    head_warmup_learning_rate: PositiveFloat = 1e-3
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    center_momentum: Momentum = 0.9
    """Share of the old centre that stays at each step."""
    centering: Literal["mean", "sinkhorn"] = "mean"
    """What keeps targets apart: the running mean of the teacher's scores taken off (DINO), or every
    batch's targets balanced over prototypes (Sinkhorn-Knopp; DINOv2 and DINOv3). With
    ``accumulate`` the mean follows the last batch of a step, and each batch is balanced on its
    own."""
    teacher_momentum: Share = 0.996
    """Share of the old teacher (I-JEPA: target encoder) that stays at each step at the start; rises
    to 1."""
    teacher_views: Literal["learned", "plain"] = "learned"
    """Which global views the teacher sees: ``learned`` is the paper's (eq. 50)."""
    local_views_in_value: bool = True
    """Whether values of masks hold the pairs with local views; without them a meta step costs less,
    and alignments that are not linear (cosine, lower bound) see another g_pre."""
    predictor: PredictorShape = PredictorShape()
    blocks: Blocks = Blocks()
    error: Literal["smooth_l1", "squared"] = "smooth_l1"
    """I-JEPA: what measures a prediction's mistake."""

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
