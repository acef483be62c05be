"""Recipes: every value of a run, read from YAML, validated, and written back fully resolved.

A modality subclasses :class:`Recipe` (and any section); this module knows no modality. All problems
are reported together, each with the ``file:line`` of its key and the values that the key accepts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from vpretrain.config.arms import Arms, FeedbackControl
from vpretrain.config.layers import apply, compose, find
from vpretrain.config.problems import Marks, explain, nearest, place_of, shown
from vpretrain.config.renamed import renamed
from vpretrain.config.section import Section
from vpretrain.config.yaml_places import written
from vpretrain.system.errors import Problem, UserError

Schemas = Mapping[str, Callable[[], "type[Recipe]"]]
Measure = Literal["steps", "tokens", "flops", "seconds"]
"""Units that a budget can be counted in."""
Layers = Annotated[int, Field(gt=0, le=1_000)]
"""Depth of a network; bounded, because building one with a few zeros too many would take hours."""
MadeUp = Annotated[int, Field(gt=0, le=1_000_000)]
"""Number of generated rows or images; bounded, because they are held in memory."""


class Budget(Section):
    """When a run ends: as soon as one of the given limits is used up. At least one is required."""

    steps: PositiveInt | None = None
    """Learner steps."""
    tokens: PositiveInt | None = None
    """Tokens (vision: images) of the stream, over all ranks."""
    flops: PositiveFloat | None = None
    """Floating-point operations, including designer and meta steps (see
    :func:`vpretrain.run.flops.count`).
    """
    seconds: PositiveFloat | None = None
    """Seconds of training; evaluation is not counted."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if all(limit is None for limit in (self.steps, self.tokens, self.flops, self.seconds)):
            raise ValueError(
                "a run needs an end: give at least one of steps, tokens, flops, seconds (the "
                "first used up ends it)"
            )
        return self


class Value(Section):
    """How the value of a task is measured (eq. 9, 26, 35) and how far it is trusted."""

    alignment: Literal["dot", "cosine", "lower_bound", "optimizer_aware"] = "optimizer_aware"
    """How g_pre and g_down are compared. ``optimizer_aware``: u = P g_down, with P from the
    learner's AdamW (eq. 35).
    """
    estimator: Literal[
        "one_sided_difference", "central_difference", "forward_mode", "double_backward"
    ] = "one_sided_difference"
    """How the loss is differentiated along u; ``vpretrain doctor RECIPE`` shows which estimators
    work here. ``one_sided_difference`` needs half the passes of ``central_difference``, and falls
    back to it if it is more than 1% off or cannot reuse the learner's own pass (dropout). Under
    ``dtype: bfloat16`` it is forward mode in bfloat16, and falls back above 2%.
    """
    unit: Literal["standardised", "raw"] = "standardised"
    """Unit of the value for designers that ascend it: standard deviations over the batch (ours), or
    ``raw`` as in eq. 9; rules on values always use standard deviations. The paper's V is raw, with
    ``memory: 0``, ``shrink: false``, ``guard_window: 0``.
    """
    meta_period: PositiveInt = 8
    """Learner steps from one meta step to the next."""
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past in a running average of g_down over meta steps: 0.9 acts like ten times
    the feedback rows, slightly out of date. On dev it helped token weights and hurt the closed form
    (docs/results.md).
    """
    start_step: NonNegativeInt = 0
    """The paper's burn-in: the learner step at which the designer's updates begin. Until then the
    learner trains on the baseline task (v1 4.2: delayed to avoid an early dip).
    """
    settle_steps: NonNegativeInt = 0
    """Ours: steps at learning rate 0 before the first learner step, in every arm, in which AdamW's
    moments (read by P), the designer and its reliability settle. They count as seconds and FLOPs,
    not as steps or tokens.
    """
    preconditioner_floor: PositiveFloat = 0.1
    """Floor on sqrt(v_hat) in P, as a fraction of the root mean square of sqrt(v_hat). Without it,
    rows of rare tokens (embeddings, head) dominate u = P g_down, because their v_hat is tiny.
    """
    smoothness: NonNegativeFloat = 1.0
    """L of Prop. 2.1, a bound on the curvature of the feedback loss; read by ``alignment:
    lower_bound`` only.
    """
    guard_window: NonNegativeInt = 16
    """Number of meta steps over which a negative mean gain switches steering off, and over which
    the designer is watched for collapse; 0 disables both.
    """
    on_collapse: Literal["log", "revert"] = "log"
    """What to do while gate, targets or masks stay at a bound, or halves of the feedback do not
    agree: only log it, or with ``revert`` also use the baseline task.
    """
    shrink: bool = True
    """Whether values are shrunk by the agreement between the halves of the feedback, so that noise
    does not steer as hard as signal.
    """


class Checkpoint(Section):
    """When the whole state of the run is saved, so that the same command resumes it. It is always
    saved at the end.
    """

    every: NonNegativeInt = 0
    """Learner steps between two checkpoints; 0: by time alone."""
    seconds: NonNegativeFloat = 600.0
    """Seconds between two checkpoints; 0: by steps alone."""
    keep_last: PositiveInt = 2
    """Number of checkpoints to keep; older ones are removed."""
    keep_best: str | None = None
    """A metric such as ``test/nll``: the learner with the best score at an evaluation
    (``evaluate.every``) is kept as the model folder ``checkpoints/best``. Ignored by ``compare``
    and ``sweep``.
    """
    asynchronous: bool = False
    """Whether training continues while files are written; costs a copy of the state in memory."""


class Faults(Section):
    """How steps that cannot be taken are handled."""

    max_skips: NonNegativeInt = 3
    """Number of batches in a row that may be skipped because loss, gradient or value is not finite.
    After that the run returns to its last checkpoint once and continues with the data that follow;
    the next time it stops.
    """


class Evaluate(Section):
    """When the learner is evaluated, in addition to before the first step and at the end."""

    every: NonNegativeInt = 0
    """Learner steps between two evaluations; 0: only before the first step and after the last."""


class Track(Section):
    """Where records are shown in addition to ``metrics.jsonl`` and TensorBoard, which always get
    them.
    """

    kind: Literal["wandb", "trackio"]
    """The package, which you install yourself; trackio keeps everything on this machine."""
    project: str = "vpretrain"


class LearnerBase(Section):
    """Numerics and optimizer (AdamW) of the learner; a modality's section adds the model."""

    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of the arithmetic. With ``bfloat16`` (autocast), trained weights and differences of
    losses stay in float32, because bfloat16 rounds small weight updates (1e-5) away.
    """
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    accumulate: PositiveInt = 1
    """Batches of the stream per learner step, which equals a step on one large batch, except for
    DINO's centring (see there) and for weights of tokens and documents, which are relative to those
    of the batches since the last meta step.
    """
    shard: bool = False
    """Whether the processes of ``torchrun`` shard the blocks below S (FSDP2): weights, gradients
    and moments, for models that do not fit on one accelerator. Not available for learners with a
    moving average of their model.
    """
    learning_rate: PositiveFloat = 1.5e-5
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    clip_norm: PositiveFloat = 1.0
    """Bound on the norm of the learner's gradient."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Fraction of the budget over which the learning rate rises linearly."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Final learning rate as a fraction of its peak, reached by cosine decay; 1 keeps it
    constant.
    """


class Recipe(Section):
    """The common part of all recipes; a modality adds data, learner and designer, and may subclass
    the sections.
    """

    arms: ClassVar[Arms[Any] | None] = None
    """The modality's arms; None if its recipes have no designers by kind."""

    modality: str
    """Name of the modality of this recipe."""
    description: str
    """One sentence for ``vpretrain recipes``."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seeds all random number generators of the run."""
    arm: str
    """The way of steering: one of the modality's arms. An arm sets the designer and the feedback
    control, or leaves them to ``designer`` and ``feedback.control``.
    """
    feedback: FeedbackControl = FeedbackControl()
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """CPU threads; null leaves the choice to torch."""
    value: Value = Value()
    learner: LearnerBase
    budget: Budget
    checkpoint: Checkpoint = Checkpoint()
    faults: Faults = Faults()
    evaluate: Evaluate = Evaluate()
    track: Track | None = None
    """Tracker (wandb or trackio) that `train` sends its records to; null: none."""
    sweep: dict[str, Any] | None = Field(default=None, exclude=True)
    """What `vpretrain sweep` searches; no other command reads it
    (:mod:`vpretrain.config.sweep`).
    """

    @model_validator(mode="after")
    def _best_is_looked_for(self) -> Self:
        if self.checkpoint.keep_best is not None and not self.evaluate.every:
            raise ValueError(
                "checkpoint.keep_best compares evaluations, and evaluate.every is 0: give it "
                "a number of steps"
            )
        return self

    @model_validator(mode="after")
    def _shards_are_written_together(self) -> Self:
        if self.learner.shard and self.checkpoint.asynchronous:
            raise ValueError(
                "checkpoint.asynchronous writes from one process, and under learner.shard all "
                "of them do: switch off one"
            )
        return self


def load(source: str | Path, overrides: Sequence[str] = (), *, schemas: Schemas) -> Recipe:
    """Reads a recipe, merges the files it extends and the overrides, and validates it.

    Args:
        source: a packaged name (names take precedence), or the path of a YAML file. A file may say
            ``extends: OTHER`` (a packaged name, or a path relative to the file): mappings are
            merged deeply, lists and scalars replaced, and so are rows and tasks of another
            ``kind``.
        overrides: ``dotted.key=value`` each. The value is parsed as YAML and replaces the previous
            one; a number among the keys addresses an item of a list; of two overrides of one key
            the later wins.
        schemas: for each modality's name, a function that imports and returns its recipe class. It
            is called only for a recipe of that modality, so that no recipe needs another modality's
            libraries.

    Returns:
        A frozen instance of the modality's class.

    Raises:
        UserError: lists every problem found in the files, the overrides and the values.
    """
    problems: list[Problem] = []
    data: dict[str, Any] = {}
    marks: Marks = {}
    readable = True
    recipe: Recipe | None = None

    def switch(data: dict[str, Any], layer: Mapping[str, Any], marks: Marks) -> None:
        if arms := _arms(data, schemas):
            arms.switch(data, layer, marks)

    try:
        data, marks = compose(
            find(source, f"recipe {source}", packaged()), problems, switch, packaged()
        )
    except UserError as error:
        readable = False
        problems += error.problems
    switch(data, _chosen(overrides), marks)
    arms = _arms(data, schemas)
    own = f"designers.{arms.kind_of(data)}." if arms else "designers.."
    for override in overrides:
        try:
            apply(override.replace(own, "designer.", 1), data, marks)
        except UserError as error:
            problems += error.problems
    if readable:
        problems += renamed(data, marks)
        recipe, wrong = _checked(data, marks, schemas)
        problems += wrong
    if problems or recipe is None:
        raise UserError(*problems)
    return recipe


def _checked(
    data: dict[str, Any], marks: Marks, schemas: Schemas
) -> tuple[Recipe | None, list[Problem]]:
    """Returns the recipe, or the problems with its values."""
    modality = data.get("modality")
    if not isinstance(modality, str) or modality not in schemas:
        where, accepted = place_of(("modality",), marks), "one of " + ", ".join(schemas)
        if "modality" not in data:
            return None, [Problem(where, "", accepted, "this key is missing; add it")]
        message = f"there is no such modality{nearest(str(modality), schemas)}"
        return None, [Problem(where, shown(modality), accepted, message)]
    schema = schemas[modality]()
    if schema.arms is not None:
        schema.arms.complete(data, marks)
    try:
        # As JSON, because pydantic's strict JSON mode still reads lists as tuples, text as paths.
        return schema.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, explain(error, schema, data, marks)


def _arms(data: dict[str, Any], schemas: Schemas) -> Arms[Any] | None:
    modality = data.get("modality")
    if not isinstance(modality, str) or modality not in schemas:
        return None
    return schemas[modality]().arms


def _chosen(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns what the overrides say of the arm, the kind of designer, and ``designers``.

    The recipe is prepared for it first, because the keys of ``designer`` depend on it.
    """
    layer: dict[str, Any] = {}
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in ("arm", "designer.kind") or key.partition(".")[0] == "designers":
            with suppress(UserError):  # said where it is applied
                apply(override, layer, {})
    return layer


def dump(recipe: Recipe) -> str:
    """Returns YAML of every resolved value, which :func:`load` reads back to an equal recipe."""
    return written(recipe.model_dump(mode="json"))


def packaged() -> dict[str, Path]:
    """Returns the paths of the packaged recipes by name (without ``.yaml``), sorted."""
    folder = Path(__file__).parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def listing(folder: Path | None = None) -> list[dict[str, str]]:
    """Returns ``{name, modality, description}`` of packaged recipes, then of those in ``folder``.

    :func:`load` accepts these names. A file without ``modality`` or ``description`` is meant to be
    extended and is left out. A file that cannot be read is listed with the reason and an empty
    modality, so that it does not hide the others.
    """
    paths = list(packaged().items())
    paths += [(str(path), path) for path in sorted(folder.rglob("*.yaml"))] if folder else []
    rows = []
    for name, path in paths:
        try:
            data, _ = compose(path, [], lambda data, layer, marks: None, packaged())
        except UserError as error:
            data = {"modality": "", "description": "cannot be read: " + str(error).splitlines()[0]}
        if "modality" in data and "description" in data:
            described = {key: str(data[key]) for key in ("modality", "description")}
            rows.append({"name": name, **described})
    return rows
