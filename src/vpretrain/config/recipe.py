"""Recipes: every value of a run, read from YAML, checked as a whole, and written back as it was
resolved.

A modality subclasses :class:`Recipe` (and any section); this module knows none of them. Everything
that a person got wrong is reported together, each problem with the ``file:line`` of its key and
what that accepts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
"""What a budget can be counted in."""
Layers = Annotated[int, Field(gt=0, le=1_000)]
"""Depth of a network. A few zeros too many would be built for hours, long before memory runs out.
"""
MadeUp = Annotated[int, Field(gt=0, le=1_000_000)]
"""How many rows or pictures are generated; they are held in memory."""


class Budget(Section):
    """When a run ends: at the first of the given limits that is used up. At least one is given."""

    steps: PositiveInt | None = None
    """Learner steps."""
    tokens: PositiveInt | None = None
    """Tokens (vision: images) of the stream, over all ranks."""
    flops: PositiveFloat | None = None
    """Floating-point operations, designer and meta steps charged (see
    :func:`vpretrain.run.flops.count`)."""
    seconds: PositiveFloat | None = None
    """Seconds of training; evaluation is not charged."""

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
    """What compares g_pre and g_down; ``optimizer_aware``: u = P g_down, P of the learner's AdamW,
    eq. 35."""
    estimator: Literal[
        "one_sided_difference", "central_difference", "forward_mode", "double_backward"
    ] = "one_sided_difference"
    """How the loss is differentiated along u; ``vpretrain doctor RECIPE`` says which of them work
    here. ``one_sided_difference`` takes half the passes of ``central_difference`` where it is
    within 1% and the learner's own pass serves (float32, no dropout), and is that elsewhere."""
    unit: Literal["standardised", "raw"] = "standardised"
    """What designers that ascend the value take it in: standard deviations over the batch (ours),
    or ``raw``, as eq. 9 has it. The paper's V is raw, with ``memory: 0``, ``shrink: false``,
    ``guard_window: 0``. Rules on values read them in standard deviations, whatever this says."""
    meta_period: PositiveInt = 8
    """Learner steps from one meta step to the next."""
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past in a running average of g_down over meta steps: 0.9 is like ten times the
    feedback rows, a little out of date. It helped weights on dev and cost the closed form
    (docs/results.md)."""
    start_step: NonNegativeInt = 0
    """The paper's burn-in: the learner step at which the designer's updates begin; until then the
    learner trains on the baseline's task (v1 4.2: delayed against an early dip)."""
    settle_steps: NonNegativeInt = 0
    """Ours: steps at learning rate 0 before the first learner step, in every arm: AdamW's moments
    (which P reads), the designer and its reliability settle while the learner stands still. They
    count as seconds and FLOPs, not as steps or tokens."""
    preconditioner_floor: PositiveFloat = 0.1
    """Floor on sqrt(v_hat) in P, as a share of the root mean square of sqrt(v_hat). Rows of rare
    tokens (embeddings, head) have a tiny v_hat; without a floor they dominate u = P g_down."""
    smoothness: NonNegativeFloat = 1.0
    """L of Prop. 2.1 (bounds the feedback loss's curvature); only ``alignment: lower_bound`` reads
    it."""
    guard_window: NonNegativeInt = 16
    """Meta steps over which a mean gain below zero switches steering off, and over which the
    designer is watched for collapse; 0: neither."""
    on_collapse: Literal["log", "revert"] = "log"
    """What follows where gate, targets or masks stand at a bound, or halves of the feedback do not
    agree: it is logged, and with ``revert`` the task is the plain one until that is over."""
    shrink: bool = True
    """Whether token values are shrunk by the agreement between the two halves of the feedback
    batch, so that noise does not steer as signal does."""


class Checkpoint(Section):
    """When the whole state of the run is saved, so that the same command goes on from there. At the
    end it always is."""

    every: NonNegativeInt = 0
    """Learner steps between two checkpoints; 0: by time alone."""
    seconds: NonNegativeFloat = 600.0
    """Seconds after which one is due; 0: by steps alone."""
    keep_last: PositiveInt = 2
    """Older ones than these many are removed."""
    keep_best: str | None = None
    """A metric (``test/nll``, say): the learner with the best score so far is kept as
    ``checkpoints/best``, a model folder. Scores come from ``evaluate.every``. ``compare`` and
    ``sweep`` keep none."""
    asynchronous: bool = False
    """Whether the run goes on while files are written; costs a copy of the state in memory."""


class Faults(Section):
    """What becomes of steps that cannot be taken."""

    max_skips: NonNegativeInt = 3
    """Batches in a row that may be left out because loss, gradient or value were not finite. After
    that the run goes back to its last checkpoint once, with the data that follow; then it stops."""


class Evaluate(Section):
    """When the learner is evaluated beside step 0 and the end."""

    every: NonNegativeInt = 0
    """Learner steps between two evaluations; 0: only before the first step and after the last."""


class Track(Section):
    """Where records are shown beside ``metrics.jsonl`` and TensorBoard, which always get them."""

    kind: Literal["wandb", "trackio"]
    """The package, installed by you; trackio keeps everything on this machine."""
    project: str = "vpretrain"


class LearnerBase(Section):
    """Numerics and optimizer of the learner (AdamW); a modality's section adds what the model
    is."""

    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """The dtype of arithmetic. Under ``bfloat16`` (autocast) what trains is kept in float32: a
    step of 1e-5 on a weight is lost in the rounding of bfloat16, and so is what is valued."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    accumulate: PositiveInt = 1
    """Batches of the stream that make one learner step; the step is that of one batch as large as
    all of them (but for DINO's centring, see there)."""
    shard: bool = False
    """Whether the processes of ``torchrun`` share out the blocks below S (FSDP2), each with a part
    of their weights, gradients and moments: for models that do not fit one accelerator. Learners
    with a moving average of their model are held whole."""
    learning_rate: PositiveFloat = 1.5e-5
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    clip_norm: PositiveFloat = 1.0
    """Bound on the norm of the learner's gradient."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of the budget over which the learning rate rises linearly."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Learning rate at the end over its peak, reached on a cosine; 1 keeps it constant."""


class Recipe(Section):
    """What every recipe holds; a modality adds data, learner and designer, and may subclass the
    sections."""

    arms: ClassVar[Arms[Any] | None] = None
    """The modality's; None where its recipes have no designers by kind."""

    modality: str
    """Which modality reads this recipe."""
    description: str
    """One sentence for ``vpretrain recipes``."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seeds everything random in the run."""
    arm: str
    """The way of steering: one of the modality's arms. It stands for a designer and a control of
    its feedback where it names them; otherwise they are ``designer`` and ``feedback.control``."""
    feedback: FeedbackControl = FeedbackControl()
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """CPU threads; null leaves torch's own choice."""
    value: Value = Value()
    learner: LearnerBase
    budget: Budget
    checkpoint: Checkpoint = Checkpoint()
    faults: Faults = Faults()
    evaluate: Evaluate = Evaluate()
    track: Track | None = None
    """wandb or trackio, which `train` shows its records in; null: neither."""
    sweep: dict[str, Any] | None = Field(default=None, exclude=True)
    """What `vpretrain sweep` searches, and what it alone reads (:mod:`vpretrain.config.sweep`)."""

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
    """Read, extend, override and check a recipe.

    Args:
        source: a packaged name (these win), or the path of a YAML file. A file may say
            ``extends: OTHER`` (a packaged name, or a path relative to it): mappings are merged
            deeply, lists and scalars replaced.
        overrides: ``dotted.key=value`` each; the value is read as YAML and replaces what was there,
            a number among the keys addresses an item of a list, and of two overrides of one key the
            later wins.
        schemas: for each modality's name, a function that imports and returns its recipe class. It
            is called only for a recipe that names it, so that no recipe needs another modality's
            libraries.

    Returns:
        A frozen instance of the modality's class.

    Raises:
        UserError: with every problem that was found in the files, the overrides and the values.
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
    section = data.get("designer")
    own = f"designers.{section.get('kind')}." if isinstance(section, dict) else "designers.."
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
    """The recipe, or what is wrong with its values."""
    modality = data.get("modality")
    if not isinstance(modality, str) or modality not in schemas:
        where, accepted = place_of(("modality",), marks), "one of " + ", ".join(schemas)
        if "modality" not in data:
            return None, [Problem(where, "", accepted, "this key is missing; add it")]
        message = f"there is no such modality{nearest(str(modality), schemas)}"
        return None, [Problem(where, shown(modality), accepted, message)]
    schema = schemas[modality]()
    if schema.arms is not None:
        schema.arms.complete(data)
    try:
        # Through JSON, because strict JSON still reads lists as tuples and text as paths.
        return schema.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, explain(error, schema, data, marks)


def _arms(data: dict[str, Any], schemas: Schemas) -> Arms[Any] | None:
    modality = data.get("modality")
    if not isinstance(modality, str) or modality not in schemas:
        return None
    return schemas[modality]().arms


def _chosen(overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides say of arm and kind of designer: they are read first, since the keys of
    ``designer`` depend on them."""
    values = dict(override.partition("=")[::2] for override in overrides)
    layer: dict[str, Any] = {}
    if "arm" in values:
        layer["arm"] = values["arm"].strip()
    if "designer.kind" in values:
        layer["designer"] = {"kind": values["designer.kind"].strip()}
    return layer


def dump(recipe: Recipe) -> str:
    """YAML of every resolved value, defaults included; :func:`load` reads it back to an equal
    recipe."""
    return written(recipe.model_dump(mode="json"))


def packaged() -> dict[str, Path]:
    """The recipes that come with the package, by name (the file's name without ``.yaml``),
    sorted."""
    folder = Path(__file__).parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def listing(folder: Path | None = None) -> list[dict[str, str]]:
    """``{name, modality, description}`` of the packaged recipes, then of all below ``folder``;
    ``load`` takes names.

    A file without ``modality`` or ``description`` is there to be extended and is left out. One that
    cannot be read is listed and says why (its modality is empty), so that it hides no other."""
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
