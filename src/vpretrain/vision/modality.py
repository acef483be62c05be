"""Vision, put together: from a recipe to the parts of a run."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Designer
from vpretrain.run.controls import controlled, shuffles_labels
from vpretrain.run.parts import Modality, Parts
from vpretrain.run.resources import shortages
from vpretrain.run.scores import Score
from vpretrain.system import devices, distributed
from vpretrain.system.errors import Problem, UserError
from vpretrain.system.sampling import Order
from vpretrain.vision.data.images import Picture, Pictures, pictures_hash
from vpretrain.vision.data.kept import GIB
from vpretrain.vision.data.loading import PictureSets, needed, read
from vpretrain.vision.data.stream import Stream
from vpretrain.vision.evaluation.probes import (
    Probed,
    classification_probe,
    depth_probe,
    knn,
    segmentation_probe,
)
from vpretrain.vision.evaluation.retrieval import pooled, retrieval
from vpretrain.vision.feedback.features import Encoder, FrozenFeatures, freeze_within
from vpretrain.vision.feedback.gradient import DenseFeedback
from vpretrain.vision.feedback.pools import shuffled
from vpretrain.vision.feedback.tasks import Classification, Segmentation
from vpretrain.vision.learners import (
    Learner,
    beside,
    encoder_of,
    new_learner,
    put_beside,
    save,
    warm_up,
    width_of,
)
from vpretrain.vision.loading import new_model
from vpretrain.vision.prepare import cached, locate, make
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.steering.arms import ARMS, DEMO, Site, check_kind

HELD_OUT_PICTURES = 64
"""Pictures of ``evaluate.split`` that the one-step probe reads at every draw."""


@dataclass(frozen=True)
class Materials:
    """What runs of one recipe share, whatever their arm and seed.

    Args:
        location: folder or hub id of the backbone; None for random weights.
        sets: all pictures.
        warmed: heads (the learner's and the feedback's) after their warm-up, by what they were made
            of: the same in every arm of a seed, and made once.
    """

    location: str | None
    sets: PictureSets
    warmed: dict[Any, Any] = field(default_factory=dict)


class Vision(Modality[VisionRecipe, Materials]):
    """The vision modality."""

    schema = VisionRecipe
    unit = "images"

    demo: Sequence[str] = DEMO

    def __init__(self) -> None:
        self.arms: Mapping[str, str] = ARMS.descriptions
        self.direct: Collection[str] = ARMS.direct

    def load(self, recipe: VisionRecipe) -> Materials:
        """Reads pictures and finds (or makes) the learner's checkpoint."""
        sets = read(recipe)
        _warn(sets)
        return Materials(locate(recipe, sets), sets)

    def check(self, recipe: VisionRecipe) -> list[Problem]:
        """Reads the data, and loads the model where it is there already; makes nothing."""
        problems: list[Problem] = []
        section, sets = recipe.learner, None
        try:
            _designer(recipe)
        except UserError as error:
            problems += error.problems
        try:
            sets = read(recipe)
            _warn(sets)
        except UserError as error:
            problems += error.problems
        try:
            problems += self._shape_problems(recipe)
        except UserError as error:
            problems += error.problems
        there = section.prepare is None or section.model is not None
        try:
            if (
                sets
                and not problems
                and (there or (cached(recipe, sets) / "config.json").is_file())
            ):
                # Everything but the heads' training, which takes long and can only fail as training
                # fails.
                brief = section.model_copy(update={"head_warmup_steps": 0})
                head = recipe.data.feedback.head.model_copy(update={"warmup_steps": 0})
                feedback = recipe.data.feedback.model_copy(update={"head": head})
                data = recipe.data.model_copy(update={"feedback": feedback})
                self.build(
                    recipe.model_copy(update={"learner": brief, "data": data}),
                    Materials(locate(recipe, sets), sets),
                )
        except UserError as error:
            problems += error.problems
        return problems

    def data_hashes(self, materials: Materials) -> dict[str, str]:
        """Of the stream's sources, both parts of the feedback, what probes learn from and what is
        evaluated on.
        """
        sets = materials.sets
        named: dict[str, Pictures] = {
            f"stream/{source.name}": source.pictures for source in sets.stream
        }
        named |= {
            "feedback/train": sets.train,
            "feedback/meta": sets.meta,
            "probed": sets.probed,
            "evaluation": sets.evaluation,
        }
        return {name: pictures_hash(pictures) for name, pictures in named.items()}

    def prepare(self, recipe: VisionRecipe, out: Path | None) -> Path:
        """A backbone with its head and teacher from the recipe's stream, as ``learner.prepare``
        says.
        """
        sets = read(recipe)
        return make(recipe, sets, out or cached(recipe, sets))

    def build(self, recipe: VisionRecipe, materials: Materials) -> Parts:
        """Fresh learner, designer, feedback and stream for the recipe's arm and seed."""
        designer, control = _designer(recipe), ARMS.control_of(recipe)
        learner, complete = new_learner(recipe, materials.location)
        _check_fit(recipe, learner, materials)
        if not complete:
            _warmed(
                materials,
                ("learner", recipe.seed, recipe.learner.dtype, recipe.learner.attention),
                make=partial(
                    warm_up,
                    learner,
                    _stream(recipe, materials, f"warm-up {recipe.seed}"),
                    steps=recipe.learner.head_warmup_steps,
                    learning_rate=recipe.learner.head_warmup_learning_rate,
                ),
                get=partial(beside, learner),
                put=partial(put_beside, learner),
            )
        feedback = _feedback(recipe, materials, learner, mixed=shuffles_labels(control))
        part = {"rank": distributed.rank(), "world": distributed.world()}
        return Parts(
            learner=ARMS.section_of(recipe).trained(learner, feedback),
            designer=designer,
            feedback=controlled(feedback, control, memory=recipe.value.memory, seed=recipe.seed),
            stream=_stream(recipe, materials, recipe.seed, **part),
            meta_batches=_meta_batches(recipe, materials, **part),
            evaluate=partial(
                _evaluate, recipe, materials, encoder_of(learner, recipe.evaluate.blocks)
            ),
            held_out_loss=(held_out := _HeldOut(recipe, materials, learner)),
            held_out_batch=held_out,
            save=partial(save, learner),
        )

    def picture(self, recipe: VisionRecipe, parts: Parts, path: Path) -> bool:
        """Draws crops of the next batch, their masks and the learned views into a PNG, as the run's
        designer makes them.

        Returns:
            False, and no file, where the arm steers no views.
        """
        from vpretrain.vision.steering.picture import draw, shown

        crops = recipe.learner.crops
        found = shown(
            parts.learner, parts.designer, next(parts.stream), mean=crops.mean, std=crops.std
        )
        if found is not None:
            draw(
                found, path, title=f"{recipe.arm}: what is kept (white) and what is blurred (black)"
            )
        return found is not None

    def _shape_problems(self, recipe: VisionRecipe) -> list[Problem]:
        """What is wrong with the backbone that a configuration makes, before its weights are."""
        section = recipe.learner
        config, where = section.config, "learner.config"
        if config is None and section.model is None and section.prepare is not None:
            config, where = section.prepare.config, "learner.prepare.config"
        if config is None:
            return []
        with torch.device("meta"):
            shapes = new_model(
                config, dtype=torch.float32, attention=section.attention, where=where
            )
        problems = shortages(shapes)
        patch = shapes.config.patch_size
        return problems + [
            Problem(
                key, str(value), f"multiples of {patch}", f"the patches of {where} do not tile it"
            )
            for key, value in _sides(recipe)
            if any(side % patch for side in value)
        ]


def _warn(sets: PictureSets) -> None:
    """What a person should know of the pictures before the first step, on standard error."""
    if not distributed.is_main_process():
        return
    lines = [f"warning: {problem}" for problem in sets.warnings]
    if sets.skipped:
        lines.append(f"{len(sets.skipped)} pictures are left out (data.on_bad_row: skip):")
    console = Console(stderr=True)
    for line in (*lines, *map(str, sets.skipped)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _stream(
    recipe: VisionRecipe, materials: Materials, seed: Any, *, rank: int = 0, world: int = 1
) -> Stream:
    """The stream, or one process's part of it; heads are warmed up on the whole of it by all of
    them alike.
    """
    data = recipe.data
    return Stream(
        materials.sets.stream,
        batch_size=data.batch_size,
        size=data.image_size,
        seed=seed,
        load_size=data.load_size,
        rank=rank,
        world=world,
    )


def _meta_batches(
    recipe: VisionRecipe, materials: Materials, *, rank: int, world: int
) -> Stream | None:
    """Unlabeled batches of the designer's own, from the stream's sources in another order."""
    if recipe.data.meta_batch_size is None:
        return None
    data = recipe.data.model_copy(update={"batch_size": recipe.data.meta_batch_size})
    sized = recipe.model_copy(update={"data": data})
    return _stream(sized, materials, f"meta {recipe.seed}", rank=rank, world=world)


def _warmed(materials: Materials, key: Any, *, make: Any, get: Any, put: Any) -> None:
    """Makes a state and keeps it, or takes it up where an earlier build has made it."""
    if key in materials.warmed:
        put(copy.deepcopy(materials.warmed[key]))
    else:
        with distributed.alone():  # all processes make the same
            make()
        materials.warmed[key] = copy.deepcopy(get())


def _designer(recipe: VisionRecipe) -> Designer:
    """The designer of the recipe's arm.

    Raises:
        UserError: there is no such arm, or it is none for this kind of learner, or the mask network
            cannot be built.
    """
    section, learner = ARMS.section_of(recipe), recipe.learner
    check_kind(section, learner.kind, recipe.arm)
    reliability = Reliability(shrink=recipe.value.shrink, unit=recipe.value.unit)
    site = Site(
        learner.kind, learner.local_views_in_value, devices.device(), recipe.seed, reliability
    )
    return section.build(site)


def _feedback(
    recipe: VisionRecipe, materials: Materials, learner: Learner, *, mixed: bool
) -> DenseFeedback:
    """The feedback set behind heads that have been warmed up on the checkpoint's features.

    ``mixed``: whether pictures have the labels of others.
    """
    section, sets = recipe.data.feedback, materials.sets
    train, meta = (shuffled(p, recipe.seed) if mixed else p for p in (sets.train, sets.meta))
    encoder = encoder_of(learner, section.head.blocks)
    feedback = DenseFeedback(
        train,
        meta,
        {sets.tasks[name]: weight for name, weight in section.tasks.items()},
        width=width_of(encoder),
        heads=section.head.settings(),
        batch_size=section.batch_size,
        batches=section.batches,
        seed=recipe.seed,
        device=next(learner.model.parameters()).device,
        encoder=lambda _: encoder,
        where="data.feedback",
    )
    _warmed(
        materials,
        ("feedback", recipe.seed, recipe.learner.dtype, recipe.learner.attention, mixed),
        make=partial(feedback.warm_up, learner, section.head.warmup_steps),
        get=feedback.state_dict,
        put=feedback.load_state_dict,
    )
    return feedback


class _HeldOut:
    """``L_down`` on the first held-out pictures under heads of its own, which never move: what
    changes is the learner's.
    """

    def __init__(self, recipe: VisionRecipe, materials: Materials, learner: Learner) -> None:
        self.recipe = recipe
        self.materials, self.learner = materials, learner

    @cached_property
    def feedback(self) -> DenseFeedback:
        """Made when it is asked for. Labels are true, whatever the arm is given."""
        return _feedback(self.recipe, self.materials, self.learner, mixed=False)

    def __call__(self, draw: int | None = None) -> Iterator[Tensor]:
        """The loss in pieces; of the first pictures, or of a random batch: the ``draw``-th."""
        tasks = self.feedback.tasks
        usable = [p for p in self.materials.sets.evaluation if any(task.has(p) for task in tasks)]
        if draw is None:
            return self.feedback.held_out_loss(self.learner, usable[:HELD_OUT_PICTURES])
        order = Order(len(usable), f"probe/{self.recipe.seed}")
        count = min(len(usable), self.recipe.data.feedback.batch_size)
        batch = [usable[order[draw * count + place]] for place in range(count)]
        return self.feedback.held_out_loss(self.learner, batch)


def _evaluate(recipe: VisionRecipe, materials: Materials, encoder: Encoder) -> dict[str, Score]:
    """Probes on frozen features, as ``evaluate`` asks for them."""
    section, split, tasks = recipe.evaluate, recipe.evaluate.split, materials.sets.tasks
    known: dict[tuple[int, ...], FrozenFeatures] = {}
    dense = {tasks[name].dense for name in needed(recipe)}

    def frozen(pictures: list[Picture], task: str) -> FrozenFeatures:
        usable = [picture for picture in pictures if tasks[task].has(picture)]
        key = tuple(map(id, usable))
        if key not in known:  # tasks that share their pictures share the features
            known[key] = freeze_within(
                encoder, usable, section.memory_gib * GIB, patches=True in dense
            )
        return known[key]

    scores: dict[str, Score] = {}

    def add(probed: Probed, **names: str) -> None:
        scores.update({f"{split}/{name}": probed.scores[found] for name, found in names.items()})

    for probe in section.probes:
        task = tasks["classification" if probe == "knn" else probe]
        pair = [
            frozen(pictures, task.name)
            for pictures in (materials.sets.probed, materials.sets.evaluation)
        ]
        settings = section.probe.settings()
        if isinstance(task, Segmentation):
            found = segmentation_probe(
                *pair,
                classes=task.classes,
                settings=settings,
                class_balanced=section.class_balanced,
            )
            add(found, miou="miou", probe_cross_entropy="cross_entropy")
        elif not isinstance(task, Classification):
            settings = (section.depth_probe or section.probe).settings()
            add(
                depth_probe(*pair, settings=settings),
                depth_rmse="rmse",
                depth_abs_rel="abs_rel",
                depth_delta_1="delta_1",
            )
        elif probe == "knn":
            scores[f"{split}/knn"] = knn(*pair, neighbours=section.neighbours)
        else:
            add(
                classification_probe(*pair, classes=task.classes, settings=settings),
                accuracy="accuracy",
            )
    for name, sought in materials.sets.retrieval.items():
        patches = section.retrieval[name].pooling == "patches"
        queries, database = (
            pooled(encoder, pictures, patches=patches)
            for pictures in (sought.queries, sought.database)
        )
        for metric, score in retrieval(queries, database, sought.relevance).items():
            scores[f"{split}/{name}_{metric}"] = score
    return scores


def _sides(recipe: VisionRecipe) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the backbone is given, by recipe key: heights and widths in pixels."""
    data, crops = recipe.data, recipe.learner.crops
    if recipe.learner.kind == "dino":
        yield "learner.crops.global_size", (crops.global_size,)
        if crops.local_count:
            yield "learner.crops.local_size", (crops.local_size,)
    else:
        yield "data.image_size", (data.image_size,)
    labelled = {
        f"data.feedback.sets.{i}.pictures": part.pictures
        for i, part in enumerate(data.feedback.sets)
    }
    for split in ("train", recipe.evaluate.split):
        labelled |= {
            f"data.evaluation.{split}.{i}": spec for i, spec in enumerate(data.evaluation[split])
        }
    for name, searched in recipe.evaluate.retrieval.items():
        yield f"evaluate.retrieval.{name}.size", searched.size
    for where, spec in labelled.items():
        yield f"{where}.size", spec.size or (data.image_size, data.image_size)


def _check_fit(recipe: VisionRecipe, learner: Learner, materials: Materials) -> None:
    """Crops, pictures and blocks against what the model can take."""
    encoder = encoder_of(learner, 1)
    patch, depth = encoder.backbone.patch_size, len(encoder.backbone.blocks)  # type: ignore[attr-defined]
    problems = [
        Problem(
            key,
            " x ".join(map(str, value)),
            f"multiples of {patch}",
            "the learner's patches do not tile it",
        )
        for key, value in _sides(recipe)
        if any(side % patch for side in value)
    ]
    for key, blocks in (
        ("evaluate.blocks", recipe.evaluate.blocks),
        ("data.feedback.head.blocks", recipe.data.feedback.head.blocks),
    ):
        if blocks > depth:
            problems.append(
                Problem(
                    key, str(blocks), f"1 to {depth}", "the learner does not have so many blocks"
                )
            )
    prototypes = recipe.learner.head.prototypes
    if (candidates := ARMS.section_of(recipe).most_candidates) > prototypes:
        message = "there are not so many prototypes"
        problems.append(
            Problem(
                "designer.candidates",
                str(candidates),
                f"1 to {prototypes}, or null",
                message,
            )
        )
    if problems:
        raise UserError(*problems)
