"""The vision modality: build the parts of a run from a recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from vpretrain.config.arms import Arm
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Designer, State
from vpretrain.run.controls import controlled, shuffles_labels
from vpretrain.run.folder import PICTURES
from vpretrain.run.parts import Checked, Modality, Parts
from vpretrain.system import devices, distributed
from vpretrain.system.errors import Problem, collecting, renamed, user_error
from vpretrain.system.phases import warn_once
from vpretrain.system.sampling import Order
from vpretrain.vision.data.checks import probed_tasks
from vpretrain.vision.data.images import Picture, Pictures, pictures_hash
from vpretrain.vision.data.loading import PictureSets, read
from vpretrain.vision.data.stream import Stream
from vpretrain.vision.evaluation.measure import evaluate
from vpretrain.vision.feedback.features import LastBlocks
from vpretrain.vision.feedback.gradient import DenseFeedback
from vpretrain.vision.feedback.pools import shuffled, task_groups
from vpretrain.vision.fit import check_fit, shape_problems
from vpretrain.vision.learners import changed_state, load_own_state, new_learner, save, warm_up
from vpretrain.vision.loading import save_image_processor
from vpretrain.vision.prepare import cached, locate, make
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.role import AnyPictureLearner
from vpretrain.vision.steering.arms import ARMS, DEMO, DINO, Site, check_kind
from vpretrain.vision.steering.masks import AscentArm

HELD_OUT_PICTURES = 64
"""Pictures of ``evaluate.split`` in the held-out loss of the one-step probe."""


@dataclass(frozen=True)
class Materials:
    """What the runs of a recipe share across arms and seeds.

    Args:
        location: folder or hub id of the backbone; None for random weights.
        sets: all pictures.
        warmed: warmed-up states of the learner's and the feedback's heads, by the settings that
            determine them.
    """

    location: str | None
    sets: PictureSets
    warmed: dict[tuple[Any, ...], State] = field(default_factory=dict)


class Vision(Modality[VisionRecipe, Materials]):
    """The vision modality."""

    schema = VisionRecipe
    unit = "images"

    demo: Sequence[str] = DEMO

    def __init__(self) -> None:
        self.arms: Mapping[str, Arm] = ARMS.all

    def load(self, recipe: VisionRecipe) -> Materials:
        """Read all pictures and locate (or make) the learner's checkpoint."""
        sets = read(recipe)
        _warn(sets)
        return Materials(locate(recipe, sets), sets)

    def check(self, recipe: VisionRecipe) -> Checked:
        """Read the data, and load the model if it exists already; nothing is trained."""
        problems: list[Problem] = []
        section, sets, parts = recipe.learner, None, None
        with collecting(problems):
            _designer(recipe)
        with collecting(problems):
            sets = read(recipe)
            _warn(sets)
        with collecting(problems):
            problems += shape_problems(recipe)
        if sets is None or problems:
            return Checked(problems)
        there = section.prepare is None or section.model is not None
        if there or (cached(recipe, sets) / "config.json").is_file():
            # All but the training of the heads, which is slow and fails like any training.
            brief = section.model_copy(update={"head_warmup_steps": 0})
            head = recipe.data.feedback.head.model_copy(update={"warmup_steps": 0})
            feedback = recipe.data.feedback.model_copy(update={"head": head})
            data = recipe.data.model_copy(update={"feedback": feedback})
            with collecting(problems):
                materials = Materials(locate(recipe, sets), sets)
                parts = self.build(
                    recipe.model_copy(update={"learner": brief, "data": data}), materials
                )
        return Checked(problems, parts, [str(warning) for warning in sets.warnings])

    def data_hashes(self, materials: Materials) -> dict[str, str]:
        sets = materials.sets
        named: dict[str, Pictures] = {
            **{f"stream/{source.name}": source.pictures for source in sets.stream},
            "feedback/train": sets.train,
            "feedback/meta": sets.meta,
            "probed": sets.probed,
            "evaluation": sets.evaluation,
        }
        return {name: pictures_hash(pictures) for name, pictures in named.items()}

    def prepare(self, recipe: VisionRecipe, out: Path | None) -> Path:
        """Train a backbone with its head and teacher on the stream, as in ``learner.prepare``."""
        sets = read(recipe)
        return make(recipe, sets, out or cached(recipe, sets))

    def build(self, recipe: VisionRecipe, materials: Materials) -> Parts:
        """Build learner, designer, feedback and stream for the recipe's arm and seed."""
        _designer(recipe)  # raises on an invalid designer before a model is loaded
        learner, complete = new_learner(recipe, materials.location)
        designer, control = _designer(recipe, learner), ARMS.control_of(recipe)
        check_fit(recipe, learner.backbone)
        if not complete:
            _warmed(
                materials,
                ("learner", recipe.seed, recipe.learner.dtype, recipe.learner.attention),
                make=partial(changed_state, learner, partial(_warm_up, recipe, materials, learner)),
                put=partial(load_own_state, learner),
            )
        feedback = _feedback(recipe, materials, learner, mixed=shuffles_labels(control))
        held_out = _HeldOutLoss(recipe, materials, learner)
        if shuffles_labels(control):
            _ = held_out.feedback  # its heads learn true labels, from the learner as it begins
        part = {"rank": distributed.rank(), "world": distributed.world()}
        return Parts(
            learner=ARMS.section_of(recipe).trained(learner, feedback),
            designer=designer,
            feedback=controlled(feedback, control, memory=recipe.value.memory, seed=recipe.seed),
            stream=_stream(recipe, materials, recipe.seed, **part),
            meta_batches=_meta_batches(recipe, materials, **part),
            evaluate=partial(
                evaluate,
                recipe,
                materials.sets,
                _encoder(recipe, learner, recipe.evaluate.blocks),
            ),
            held_out_loss=held_out,
            held_out_batch=held_out,
            save=partial(_save, recipe, materials.location, learner),
            followers=1,  # the teacher or target encoder
        )

    def draw(self, recipe: VisionRecipe, materials: Materials, parts: Parts, folder: Path) -> None:
        """Draw crops with masks and learned views, and predictions before and after the run."""
        from vpretrain.vision.evaluation.prediction_pictures import draw_predictions, drawable

        self.picture(recipe, parts, folder / PICTURES / "views.png")
        sets = materials.sets
        if (task := drawable([sets.tasks[name] for name in probed_tasks(recipe)])) is None:
            return
        encoders = {}
        for name, location in (("before", materials.location), ("after", str(folder / "model"))):
            learner, _ = new_learner(recipe, location)
            encoders[name] = _encoder(recipe, learner, recipe.evaluate.blocks)
        settings, path = recipe.evaluate.probe, folder / PICTURES / "predictions.png"
        draw_predictions(task, encoders, sets.probed, sets.evaluation, settings, path)

    def explain(
        self, recipe: VisionRecipe, folder: Path, *, documents: int, out: Path
    ) -> dict[str, Any]:
        raise user_error(
            "RUN",
            "`explain` reads runs on text; of one on pictures `vpretrain report RUN` shows crops, "
            "masks and learned views, and predictions before and after",
            value=str(folder),
            accepted="the folder of a run on text",
        )

    def picture(self, recipe: VisionRecipe, parts: Parts, path: Path) -> bool:
        """Write crops of the next batch, their masks and the learned views as a PNG.

        Returns False, and writes nothing, if there is nothing to show."""
        from vpretrain.vision.steering.picture import draw, steered_views

        crops = recipe.learner.crops
        batch, learner = next(parts.stream), parts.learner
        views = steered_views(learner, parts.designer, batch, mean=crops.mean, std=crops.std)
        if views is not None:
            title = f"{recipe.arm}: what is kept (white) and what is blurred (black)"
            draw(views, path, title=title)
        return views is not None


def _warn(sets: PictureSets) -> None:
    """Print warnings about the pictures, and those left out, on standard error."""
    if not distributed.is_main_process():
        return
    lines = [f"warning: {problem}" for problem in sets.warnings]
    if sets.skipped:
        lines.append(f"{len(sets.skipped)} pictures are left out (data.on_bad_row: skip):")
    if lines := [*lines, *map(str, sets.skipped)]:
        warn_once("\n".join(lines))


def _stream(
    recipe: VisionRecipe, materials: Materials, seed: int | str, *, rank: int = 0, world: int = 1
) -> Stream:
    """Return the stream, or one process's part of it.

    For the warm-up of heads, every process reads whole batches."""
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
    """Return the designer's own unlabeled batches, from the same sources in another order."""
    if recipe.data.meta_batch_size is None:
        return None
    data = recipe.data.model_copy(update={"batch_size": recipe.data.meta_batch_size})
    sized = recipe.model_copy(update={"data": data})
    with renamed({"data.batch_size": "data.meta_batch_size"}):
        return _stream(sized, materials, f"meta {recipe.seed}", rank=rank, world=world)


def _warm_up(recipe: VisionRecipe, materials: Materials, learner: AnyPictureLearner) -> None:
    """Train the learner's fresh head or predictor on frozen features."""
    warm_up(
        learner,
        _stream(recipe, materials, f"warm-up {recipe.seed}"),
        steps=recipe.learner.head_warmup_steps,
        learning_rate=recipe.learner.head_warmup_learning_rate,
    )


def _warmed(
    materials: Materials, key: Any, *, make: Callable[[], State], put: Callable[[State], None]
) -> None:
    """Run a warm-up and keep a copy of the resulting state, or restore it from an earlier build."""
    if key in materials.warmed:
        put(materials.warmed[key])
    else:
        with distributed.alone():  # all processes compute the same state
            materials.warmed[key] = make()


def _save(
    recipe: VisionRecipe, location: str | None, learner: AnyPictureLearner, folder: Path
) -> None:
    save(learner, folder)
    if location is not None:
        crops = recipe.learner.crops
        save_image_processor(location, folder, mean=crops.mean, std=crops.std)


def _designer(recipe: VisionRecipe, learner: AnyPictureLearner | None = None) -> Designer:
    section, of = ARMS.section_of(recipe), recipe.learner
    check_kind(section, of.kind, recipe.arm)
    if of.kind == DINO and isinstance(section, AscentArm) and of.crops.global_count == 1:
        message = (
            "a masked view is compared with the targets of the other global views, and there is "
            "none, so that no mask has a value"
        )
        raise user_error("learner.crops.global_count", message, value=1, accepted="2 or more")
    reliability = Reliability(shrink=recipe.value.shrink, unit=recipe.value.unit)
    site = Site(
        of.kind, of.local_views_in_value, devices.device(), recipe.seed, reliability, learner
    )
    return section.build(site)


def _encoder(recipe: VisionRecipe, learner: AnyPictureLearner, blocks: int) -> LastBlocks:
    """Return the encoder of heads and probes: the backbone with the learner's normalisation."""
    crops = recipe.learner.crops
    return LastBlocks(learner.backbone, blocks, crops.mean, crops.std)


def _feedback(
    recipe: VisionRecipe, materials: Materials, learner: AnyPictureLearner, *, mixed: bool
) -> DenseFeedback:
    """Build the feedback and warm up its heads; ``mixed`` shuffles labels among pictures."""
    section, sets = recipe.data.feedback, materials.sets
    train, meta = (shuffled(p, recipe.seed) if mixed else p for p in (sets.train, sets.meta))
    encoder = _encoder(recipe, learner, section.head.blocks)
    feedback = DenseFeedback(
        train,
        meta,
        {sets.tasks[name]: weight for name, weight in section.tasks.items()},
        width=encoder.width,
        heads=section.head,
        batch_size=section.batch_size,
        batches=section.batches,
        seed=recipe.seed,
        device=next(learner.model.parameters()).device,
        encoder=lambda _: encoder,
        where="data.feedback",
    )

    def warmed_up() -> State:
        feedback.warm_up(learner, section.head.warmup_steps)
        return copy.deepcopy(feedback.state_dict())

    _warmed(
        materials,
        ("feedback", recipe.seed, recipe.learner.dtype, recipe.learner.attention, mixed),
        make=warmed_up,
        # An optimizer keeps the tensors it is given, without copying.
        put=lambda state: feedback.load_state_dict(copy.deepcopy(state)),
    )
    return feedback


@dataclass(frozen=True)
class _HeldOutLoss:
    """``L_down`` on held-out pictures, in pieces.

    It has its own heads, which never train during the run, and true labels in every arm."""

    recipe: VisionRecipe
    materials: Materials
    learner: AnyPictureLearner

    @cached_property
    def feedback(self) -> DenseFeedback:
        """The held-out feedback, built on first use."""
        return _feedback(self.recipe, self.materials, self.learner, mixed=False)

    def __call__(self, draw: int | None = None) -> Iterator[Tensor]:
        """Yield the loss on the first pictures, or on the ``draw``-th random batch.

        Every task is represented, whichever set its pictures come from."""
        feedback = self.feedback
        # Tasks that share their pictures also share one list.
        groups = task_groups(self.materials.sets.evaluation, feedback.tasks)
        lists = [members for members, _ in groups]
        if draw is None:
            in_turn = (
                picture for row in zip_longest(*lists) for picture in row if picture is not None
            )
            chosen = _distinct(in_turn)[:HELD_OUT_PICTURES]
        else:
            chosen = _distinct(picture for each in lists for picture in self._batch(each, draw))
        return feedback.held_out_loss(self.learner, chosen)

    def _batch(self, pictures: Sequence[Picture], draw: int) -> list[Picture]:
        order = Order(len(pictures), f"probe/{self.recipe.seed}")
        count = min(len(pictures), self.recipe.data.feedback.batch_size)
        return [pictures[order[draw * count + place]] for place in range(count)]


def _distinct(pictures: Iterable[Picture]) -> list[Picture]:
    return list({id(picture): picture for picture in pictures}.values())
