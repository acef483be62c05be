"""Recipes: every value of a run, read from YAML, checked as a whole, and written back as it was
resolved.

A modality subclasses :class:`Recipe` (and any section); this module knows none of them. Everything
that a person got wrong is reported together, each problem with the ``file:line`` of its key and
what that accepts."""

from __future__ import annotations

import difflib
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
from vpretrain.config.problems import Key, Marks, dotted, explain, nearest, place_of, shown
from vpretrain.config.renamed import renamed
from vpretrain.config.section import Section, look_up
from vpretrain.config.yaml_places import parse, written
from vpretrain.system.errors import Problem, UserError, user_error

Schemas = Mapping[str, Callable[[], "type[Recipe]"]]
Switch = Callable[[dict[str, Any], Mapping[str, Any], Marks], None]
"""Prepares a recipe's data for a layer over it, see :meth:`vpretrain.config.arms.Arms.switch`."""

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
    estimator: Literal["central_difference", "forward_mode", "double_backward"] = (
        "central_difference"
    )
    """How the loss is differentiated along u; ``vpretrain doctor RECIPE`` says which of them work
    here."""
    unit: Literal["standardised", "raw"] = "standardised"
    """What designers are given values in: standard deviations over the batch (ours), or ``raw``, as
    eq. 9 has them. The paper's V is raw, with ``memory: 0``, ``shrink: false``,
    ``guard_window: 0``."""
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
    count as seconds, not as steps or tokens."""
    preconditioner_floor: PositiveFloat = 0.1
    """Floor on sqrt(v_hat) in P, as a share of the root mean square of sqrt(v_hat). Rows of rare
    tokens (embeddings, head) have a tiny v_hat; without a floor they dominate u = P g_down."""
    smoothness: NonNegativeFloat = 1.0
    """L of Prop. 2.1 (bounds the feedback loss's curvature); only ``alignment: lower_bound`` reads
    it."""
    guard_window: NonNegativeInt = 16
    """Meta steps over which a mean gain below zero closes the gate, and over which the designer is
    watched for collapse; 0 switches both off."""
    on_collapse: Literal["log", "revert"] = "log"
    """What follows where gate, targets or masks stand at a bound, or halves of the feedback do not
    agree: it is logged, and with ``revert`` the task is the plain one until that is over."""
    shrink: bool = True
    """Whether token values are shrunk by the agreement between the two halves of the feedback
    batch, so that noise does not open the gate as signal does."""


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
    ``checkpoints/best``, a model folder. Scores come from ``evaluate.every``."""
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


class LearnerBase(Section):
    """Numerics and optimizer of the learner (AdamW); a modality's section adds what the model
    is."""

    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of arithmetic. Under ``bfloat16`` (autocast) what trains is kept in float32, since a step of
    1e-5 on a weight is lost in the rounding of bfloat16, and so is what is valued."""
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
    threads: PositiveInt | None = None
    """CPU threads; null leaves torch's own choice."""
    value: Value = Value()
    learner: LearnerBase
    budget: Budget
    checkpoint: Checkpoint = Checkpoint()
    faults: Faults = Faults()
    evaluate: Evaluate = Evaluate()
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
        data, marks = _compose(_find(source, f"recipe {source}", Path()), problems, switch)
    except UserError as error:
        readable = False
        problems += error.problems
    switch(data, _chosen(overrides), marks)
    section = data.get("designer")
    own = f"designers.{section.get('kind')}." if isinstance(section, dict) else "designers.."
    for override in overrides:
        try:
            _apply(override.replace(own, "designer.", 1), data, marks)
        except UserError as error:
            problems += error.problems
    if readable:
        problems += renamed(data, marks)
        recipe, found = _checked(data, marks, schemas)
        problems += found
    if problems or recipe is None:
        raise UserError(*problems)
    return recipe


def _checked(
    data: dict[str, Any], marks: Marks, schemas: Schemas
) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or what is wrong with its values."""
    modality = data.get("modality")
    if not isinstance(modality, str) or modality not in schemas:
        given = "modality" in data
        hint = nearest(str(modality), schemas) if given else "; add it"
        message = f"there is no such modality{hint}" if given else f"this key is missing{hint}"
        where = place_of(("modality",), marks)
        accepted = "one of " + ", ".join(schemas)
        return None, [Problem(where, shown(modality) if given else "", accepted, message)]
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
    given = dict(override.partition("=")[::2] for override in overrides)
    layer: dict[str, Any] = {}
    if "arm" in given:
        layer["arm"] = given["arm"].strip()
    if "designer.kind" in given:
        layer["designer"] = {"kind": given["designer.kind"].strip()}
    return layer


def dump(recipe: Recipe) -> str:
    """YAML of every resolved value, defaults included; :func:`load` reads it back to an equal
    recipe."""
    return written(recipe.model_dump(mode="json"))


def packaged() -> dict[str, Path]:
    """The recipes that come with the package, by name (the file's name without ``.yaml``),
    sorted."""
    return {
        path.stem: path for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    }


def listing(folder: Path | None = None) -> list[dict[str, str]]:
    """``{name, modality, says}`` of the packaged recipes, then of all below ``folder``; ``load``
    takes names.

    A file without ``modality`` or ``description`` is there to be extended and is left out. One that
    cannot be read is listed and says why (its modality is empty), so that it hides no other."""
    found = list(packaged().items())
    found += [(str(path), path) for path in sorted(folder.rglob("*.yaml"))] if folder else []
    rows = []
    for name, path in found:
        try:
            data, _ = _compose(path, [], lambda data, layer, marks: None)
        except UserError as error:
            data = {"modality": "", "description": "cannot be read: " + str(error).splitlines()[0]}
        if "modality" in data and "description" in data:
            rows.append(
                {
                    "name": name,
                    "modality": str(data["modality"]),
                    "description": str(data["description"]),
                }
            )
    return rows


def _find(source: str | Path, where: str, beside: Path) -> Path:
    known, path = packaged(), beside / source
    if str(source) in known:
        return known[str(source)]
    try:
        look_up(path)
    except ValueError as error:
        raise user_error(
            where, str(error), value=shown(str(source)), accepted="the path of a YAML file"
        ) from None
    if path.is_file():
        return path
    if path.is_dir():
        inside = (
            ", ".join(str(file) for file in sorted(path.glob("*.yaml"))) or "it holds no *.yaml"
        )
        raise user_error(
            where,
            "this is a folder; name a recipe in it",
            value=str(source),
            accepted=f"a file: {inside}",
        )
    names = {file.stem: str(file) for file in sorted(path.parent.glob("*.yaml"))} | {
        name: name for name in known
    }
    close = difflib.get_close_matches(path.name.removesuffix(".yaml"), names, n=1)
    hint = f"; did you mean {names[close[0]]}?" if close else ""
    if "=" in str(source):
        hint = "; the recipe comes first, overrides come after it"
    accepted = "the path of a YAML file, or a packaged recipe: " + (
        ", ".join(known) or "(there are none)"
    )
    raise user_error(where, f"there is no such recipe{hint}", value=str(source), accepted=accepted)


def _compose(
    path: Path, problems: list[Problem], switch: Switch, above: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], Marks]:
    """The file's mapping merged over what it extends; twice-given keys are added to
    ``problems``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise user_error(
            str(path), f"this file cannot be read: {error}", accepted="a text file in UTF-8"
        ) from None
    value, marks, found = parse(text, lambda line: f"{path}:{line}")
    problems += found
    if not isinstance(value, dict):
        message = "a recipe is a mapping of keys to values"
        raise user_error(str(path), message, value=shown(value), accepted="lines such as `seed: 0`")
    marks[()] = str(path)
    if "extends" not in value:
        return value, marks
    base, where = value.pop("extends"), place_of(("extends",), marks)
    if not isinstance(base, str):
        raise user_error(
            where,
            "a recipe extends one other",
            value=shown(base),
            accepted="a packaged name or a path",
        )
    parent, chain = _find(base, where, path.parent), (*above, path.resolve())
    if parent.resolve() in chain:
        circle = " -> ".join(
            file.name for file in (*chain[chain.index(parent.resolve()) :], parent)
        )
        raise user_error(
            where,
            "these recipes extend each other in a circle; remove one of the links",
            value=circle,
        )
    data, inherited = _compose(parent, problems, switch, chain)
    switch(data, value, inherited)
    return _merge(data, value), inherited | marks


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _apply(override: str, data: dict[str, Any], marks: Marks) -> None:
    """Write one ``dotted.key=value`` into ``data``, and into ``marks`` that it came from there."""
    name, equals, text = override.partition("=")
    parts, where = name.strip().split("."), f"override {override}"
    if not equals or not all(parts):
        message = "an override is written key=value, with dots between the parts of the key"
        raise user_error(where, message, accepted="for example budget.steps=100")
    value, _, twice = parse(text, lambda _: where)
    if twice:
        raise UserError(*twice)
    place: Any = data
    key: Key = ()
    for depth, part in enumerate(parts):
        step: str | int = part
        if isinstance(place, list):
            if not (part.isdecimal() and int(part) < len(place)):
                accepted = (
                    f"an index from 0 to {len(place) - 1}"
                    if place
                    else "no index: the list is empty"
                )
                raise user_error(
                    where,
                    f"{dotted(key)} is a list, and {part} is no item of it",
                    accepted=accepted,
                )
            step = int(part)
        elif not isinstance(place, dict):
            raise user_error(
                where, f"{dotted(key)} is a single value, without keys", value=shown(place)
            )
        key = (*key, step)
        if depth == len(parts) - 1:
            place[step] = value
        elif isinstance(place, dict) and place.get(step) is None:
            place[step] = {}
            marks[key] = "override"
        place = place[step]
    for stale in [mark for mark in marks if mark[: len(key)] == key]:
        del marks[stale]
    marks[key] = "override"
