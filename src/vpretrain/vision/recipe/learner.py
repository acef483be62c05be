"""Recipe sections of the learner: backbone, crops, head or predictor, and its preparation."""

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
    """Global and local views of a batch; sizes and counts default to the paper's."""

    global_size: PositiveInt = 224
    """Side of a global view in pixels."""
    local_size: PositiveInt = 96
    """Side of a local view in pixels."""
    global_count: PositiveInt = 2
    local_count: NonNegativeInt = 6
    global_scale: Range = (0.32, 1.0)
    """Range of the fraction of the picture's area that a global view covers."""
    local_scale: Range = (0.05, 0.32)
    """Range of the fraction of the picture's area that a local view covers."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    jitter: Share = 0.8
    """Probability of colour jitter."""
    brightness: NonNegativeFloat = 0.4
    """Largest relative change of brightness."""
    contrast: NonNegativeFloat = 0.4
    """Largest relative change of contrast."""
    saturation: NonNegativeFloat = 0.2
    """Largest relative change of saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest change of hue, as a fraction of the colour circle."""
    grayscale: Share = 0.2
    """Probability of conversion to grayscale."""
    blur: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur in the first global view, other global views, local views."""
    blur_sigma: Range = (0.1, 2.0)
    """Lowest and highest standard deviation of the blur, in pixels of the view."""
    solarise: Share = 0.2
    """Probability of solarisation (inverting bright pixels) in global views after the first."""
    mean: Channels = IMAGENET_MEAN
    """Mean of R, G, B for normalising views and the pictures of feedback and probes."""
    std: Channels = IMAGENET_STD
    """Standard deviation of R, G, B for normalising views and the pictures of feedback and
    probes."""

    def settings(self) -> MultiCrop:
        """Return the settings as the learner takes them."""
        return MultiCrop(**self.model_dump())

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        self.settings()
        return self


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


class Blocks(Section):
    """I-JEPA's block masks."""

    targets: PositiveInt = 4
    """Target blocks per image."""
    target_scale: Range = (0.15, 0.2)
    """Range of the fraction of the patch grid that a target block covers."""
    target_aspect: Range = (0.75, 1.5)
    """Range of a target block's height divided by its width."""
    context_scale: Range = (0.85, 1.0)
    """Range of the fraction of the patch grid that the context block covers before the targets are
    removed from it."""
    least_context_patches: PositiveInt = 4
    """Fewest context patches left after the targets are removed."""

    def settings(self) -> BlockSettings:
        """Return the settings as the learner takes them."""
        return BlockSettings(**self.model_dump())

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        try:
            self.settings()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self


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


class LearnerSection(LearnerBase):
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
    crops: Crops = Crops()
    """Views of DINO; I-JEPA uses only ``mean`` and ``std``."""
    head: DinoHeadShape = DinoHeadShape()
    head_warmup_steps: NonNegativeInt = 500
    """Training steps of a fresh head (I-JEPA: predictor) on frozen features, before the backbone
    trains; skipped if the checkpoint comes with its own."""
    head_warmup_learning_rate: PositiveFloat = 1e-3
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    center_momentum: Momentum = 0.9
    """EMA momentum of the centre."""
    centering: Literal["mean", "sinkhorn"] = "mean"
    """How collapse is prevented: ``mean`` subtracts the running mean of the teacher's scores
    (DINO), ``sinkhorn`` balances each batch's targets over prototypes (Sinkhorn-Knopp; DINOv2 and
    DINOv3). With ``accumulate`` the mean follows a step's last batch, and each batch is balanced
    separately."""
    teacher_momentum: Share = 0.996
    """EMA momentum of the teacher (I-JEPA: target encoder) at the start; rises to 1."""
    teacher_views: Literal["learned", "plain"] = "learned"
    """Global views that the teacher sees: ``learned`` as in the paper (eq. 50), or ``plain``."""
    local_views_in_value: bool = True
    """Whether the value of masks includes pairs with local views. Without them a meta step costs
    less, and nonlinear alignments (cosine, lower bound) see a different g_pre."""
    predictor: PredictorShape = PredictorShape()
    blocks: Blocks = Blocks()
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
