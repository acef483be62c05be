"""The recipe of a vision run: what the core's recipe holds, and data, learner, designer, probes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vpretrain.errors import UserError
from vpretrain.recipe import Evaluate, LearnerBase, Recipe, Section
from vpretrain.vision.blocks import BlockSettings
from vpretrain.vision.crops import MultiCrop
from vpretrain.vision.evaluate import ProbeSettings
from vpretrain.vision.feedback import HeadSettings
from vpretrain.vision.images import IMAGENET_MEAN, IMAGENET_STD

Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Range = tuple[NonNegativeFloat, NonNegativeFloat]
Side = tuple[PositiveInt, PositiveInt]
Channels = tuple[float, float, float]
Downstream = Literal["segmentation", "depth", "classification"]
Probe = Literal["segmentation", "depth", "classification", "knn"]


class PictureSet(Section):
    """Pictures of one origin; those of the stream are used without their labels."""

    skip: NonNegativeInt = 0
    """Pictures left out at the beginning."""
    count: PositiveInt | None = None
    """Pictures taken after those; null takes all."""
    size: Side | None = None
    """Height and width that labelled pictures are brought to; null: ``data.image_size`` squared. The stream has its own."""


class ScenePictures(PictureSet):
    """Rendered scenes with exact labels, depth and category (the embedded default)."""

    kind: Literal["scenes"]
    split: Literal["stream", "feedback", "dev", "test"] = "stream"
    """Disjoint."""
    count: PositiveInt
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        if self.size is not None and self.size[0] != self.size[1]:
            raise ValueError(f"scenes are square; give `size` two equal numbers, not {list(self.size)}")
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
    classes: Annotated[int, Field(ge=1, le=255)] | None = None
    """How many classes the label maps have."""
    void: NonNegativeInt | None = None
    """The number of pixels without a label, besides 255, which always means that."""
    first_class: NonNegativeInt = 0
    """The number that class 0 is written as."""
    depth_metres: Range = (1e-3, 10.0)
    """Depths that are not above the first or are above the second count as not known."""

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if self.labels is not None and self.classes is None:
            raise ValueError("label maps need `classes`: say how many there are")
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
    """Whether depths outside of the Eigen crop count as not known, as they do where depth is scored."""


class ImageNetPictures(PictureSet):
    """One folder of images a category, as ImageNet has it."""

    kind: Literal["imagenet"]
    path: Path = Path("imagenet/train")
    """Relative to ``data.root``; holds the categories' folders."""
    check: bool = False
    """Whether every image is decoded before the run; if not, one that cannot be read stops the run when it is drawn."""


Pictures = Annotated[
    ScenePictures | FolderPictures | Ade20kPictures | NyuV2Pictures | ImageNetPictures, Field(discriminator="kind")
]


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
        """As :class:`vpretrain.vision.feedback.DenseFeedback` takes them."""
        return HeadSettings(self.steps, self.batch_size, self.learning_rate)


class Feedback(Section):
    """The labelled pictures that steer."""

    sets: list[FeedbackSet] = Field(min_length=1)
    tasks: dict[Downstream, PositiveFloat] = Field(min_length=1)
    """Weight of each task's loss (a_seg and a_dep of eq. 51); a task uses the pictures that have targets for it."""
    batch_size: PositiveInt = 16
    """Pictures of each task in one meta batch."""
    batches: Annotated[int, Field(ge=2)] = 2
    """Meta batches heard at a meta step; g_down is their mean, and their agreement says how far to trust it."""
    head: FeedbackHead = FeedbackHead()


class Data(Section):
    """Where pictures come from."""

    root: Path = Path()
    """Folder that relative paths start from."""
    image_size: PositiveInt
    """Side in pixels of the stream's pictures, which crops are cut from."""
    load_size: PositiveInt | None = None
    """Shorter side that a picture of the stream is scaled to before a window is cut; null: ``image_size``."""
    batch_size: PositiveInt
    """Pictures in a batch of the stream."""
    stream: list[Source] = Field(min_length=1)
    feedback: Feedback
    evaluation: dict[str, list[Pictures]]
    """Labelled pictures by split: ``train`` is what probes learn from, ``evaluate.split`` what they are scored on."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What becomes of pictures that cannot be used: an error, or they are left out, counted and named."""

    @model_validator(mode="after")
    def _loads_enough(self) -> Self:
        if self.load_size is not None and self.load_size < self.image_size:
            raise ValueError(f"data.load_size is {self.load_size}, smaller than data.image_size, {self.image_size}")
        return self


class Crops(Section):
    """Views of a batch (see :class:`vpretrain.vision.crops.MultiCrop`); the paper's sizes and counts by default."""

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
    """Mean of R, G, B that views are normalised with."""
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
    depth: PositiveInt = 6
    heads: PositiveInt = 12


class Blocks(Section):
    """I-JEPA's block masks (see :class:`vpretrain.vision.blocks.BlockSettings`)."""

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
    """How the learner that steering starts from is made, where no checkpoint is at hand: plain training on the stream."""

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
    """A local folder, a hub id, or a packaged checkpoint; null uses (and on first use makes) what ``prepare`` says."""
    config: dict[str, Any] | None = None
    """A ``transformers`` configuration for random weights, in the place of ``model`` (benchmarks)."""
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
    """Steps of a fresh head (I-JEPA: predictor) on frozen features, before the backbone moves; they are not released with
    backbones. A checkpoint that comes with its own goes on without them."""
    head_warmup_learning_rate: PositiveFloat = 1e-3
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    center_momentum: Momentum = 0.9
    """Share of the old centre that stays at each step."""
    teacher_momentum: Share = 0.996
    """Share of the old teacher (I-JEPA: target encoder) that stays at each step at the start; rises to 1."""
    teacher_views: Literal["learned", "plain"] = "learned"
    """Which global views the teacher sees: ``learned`` is the paper's (eq. 50)."""
    local_views_in_value: bool = True
    """Whether values of masks hold the pairs with local views; without them a meta step costs less, and alignments that
    are not linear (cosine, lower bound) see another g_pre."""
    predictor: PredictorShape = PredictorShape()
    blocks: Blocks = Blocks()
    error: Literal["smooth_l1", "squared"] = "smooth_l1"
    """I-JEPA: what measures a prediction's mistake."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        made = self.prepare is not None and self.model is None
        if (self.model is not None) + (self.config is not None) + made != 1:
            raise ValueError(
                "give one of `model` (a checkpoint), `config` (random weights) or `prepare` (made on first use)"
            )
        if self.kind == "ijepa" and (self.aligned_patterns or self.aligned_blocks == "all"):
            raise ValueError("kind ijepa takes `aligned_blocks` as a number, and no `aligned_patterns`")
        return self


class DesignerSection(Section):
    """The task designer; each arm reads what concerns it."""

    kind: Literal["ascent", "closed_form", "view_weights", "patch_weights"] = "ascent"
    """What arms that only replace the feedback (random directions, say) steer with."""
    network: Literal["unet", "patch"] = "unet"
    """``ascent``: what looks at a view and emits its mask; ``patch`` is the tiny transformer (DiT/SiT style)."""
    base: PositiveInt = 16
    """``unet``: channels at full resolution, a multiple of 8."""
    depth: PositiveInt = 3
    """Halvings of ``unet``; blocks of ``patch``."""
    patch_size: PositiveInt = 16
    """``patch``: the mask's grain in pixels."""
    width: PositiveInt = 64
    """``patch``: of its tokens."""
    heads: PositiveInt = 4
    """``patch``: of its attention."""
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Mean of the mask that every arm with masks keeps to; 1 leaves views as they are (not for ``ascent``)."""
    sparsity: NonNegativeFloat = 0.131
    """l_spars of eq. 54: price of the squared distance of the mask's mean from the keep ratio."""
    total_variation: NonNegativeFloat = 0.144
    """l_tv of eq. 54: price of a rough mask."""
    value_unit: Literal["standard_deviation", "raw"] = "standard_deviation"
    """What those prices are in: standard deviations of dV/dmu over pixels (ours: the scale of the losses drops out), or the
    value itself (the paper's)."""
    learning_rate: NonNegativeFloat = 1.54e-4
    """Of Adam on the mask network."""
    updates: PositiveInt = 1
    """Steps of the mask network a meta step, along the same dV/dmu."""
    meta_images: PositiveInt | None = None
    """``ascent``: images of the learner's batch whose masks are valued at a meta step; null: all of them."""
    blur_sigma: PositiveFloat = 4.0
    """Standard deviation in pixels of the blur that a mask lets through (eq. 49; the paper gives none)."""
    grain: PositiveInt = 16
    """``random_masks``: side in pixels of the grid that they are drawn on."""
    candidates: PositiveInt | None = None
    """``closed_form``: the teacher's most probable prototypes, among which mass may move; null: all."""
    gate_max: Share = 0.5
    """``closed_form``: the most mass that may leave the teacher's own distribution."""
    temperature: PositiveFloat = 1.0
    """``closed_form``: tau of the anchored rule, in standard deviations of the value."""
    clip: PositiveFloat = 2.0
    """``closed_form``: bound on the tilt of the anchored rule."""
    tilt: NonNegativeFloat = 0.4
    """``view_weights``, ``patch_weights``: weight per standard deviation of the value."""
    control_gate: Share = 0.1
    """``uniform_smoothing``: the constant share of mass that is spread evenly."""
    direct_weight: PositiveFloat = 1.0
    """``direct``: what g_down is multiplied by before it is added to the step."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"designer.width is {self.width}; designer.heads ({self.heads}) and 4 have to divide it")
        return self


class ProbeSection(Section):
    """How probes are trained on frozen features (see :class:`vpretrain.vision.evaluate.ProbeSettings`)."""

    steps: PositiveInt = 500
    """The paper's: 20,000."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 0.05
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip_norm: PositiveFloat = 1.0
    train_size: Side | None = None
    """Height and width at which the loss is taken in training; scores are at the pictures' size in any case."""
    refits: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """Seeds, one a fit; scores are means over the fits."""

    def settings(self) -> ProbeSettings:
        """As the probes take them."""
        return ProbeSettings(**self.model_dump())


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
    probe: ProbeSection = ProbeSection()
    depth_probe: ProbeSection | None = None
    """Where depth is to be probed otherwise; null: as the rest."""
    neighbours: PositiveInt = 10
    """Of ``knn``."""


class VisionRecipe(Recipe):
    """A recipe with ``modality: vision``."""

    data: Data
    learner: LearnerSection
    designer: DesignerSection = DesignerSection()
    evaluate: VisionEvaluate = VisionEvaluate()

    @model_validator(mode="after")
    def _splits_exist(self) -> Self:
        for split in ("train", self.evaluate.split):
            if not self.data.evaluation.get(split):
                raise ValueError(
                    f"data.evaluation has no {split!r}, which probes need; it has {sorted(self.data.evaluation)}"
                )
        if self.evaluate.split == "train":
            raise ValueError("evaluate.split is train, which the probes learn from; name another of data.evaluation")
        return self
