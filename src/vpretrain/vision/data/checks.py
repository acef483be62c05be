"""Check that the pictures of a recipe fit its tasks and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from vpretrain.models.loading import named
from vpretrain.system.errors import Problem, abbreviated
from vpretrain.vision.data.images import IGNORE, Picture
from vpretrain.vision.dino.loss import fitting_prototypes
from vpretrain.vision.feedback.tasks import DownstreamTask, target_problems
from vpretrain.vision.loading import image_processor
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.steering.arms import ARMS


def probed_tasks(recipe: VisionRecipe) -> list[str]:
    """Return the downstream tasks that the recipe's probes need."""
    probes = recipe.evaluate.probes
    return list(dict.fromkeys("classification" if each == "knn" else each for each in probes))


def data_warnings(
    recipe: VisionRecipe,
    streamed: int,
    feedback: list[Picture],
    probed: list[Picture],
    evaluation: list[Picture],
) -> Iterator[Problem]:
    """Yield warnings about settings that are allowed but often wrong."""
    prototypes, fitting = recipe.learner.head.prototypes, fitting_prototypes(streamed)
    if recipe.learner.kind == "dino" and prototypes > max(fitting, streamed):
        message = f"more prototypes than the stream has pictures ({streamed}): most will stay empty"
        where = "learner.head.prototypes"
        yield Problem(where, str(prototypes), f"{streamed} or fewer, such as {fitting}", message)
    for name in recipe.learner.unread:
        message = f"kind {recipe.learner.kind} does not read this key, which changes nothing"
        yield Problem(f"learner.{name}", str(getattr(recipe.learner, name)), "", message)
    yield from _other_normalisation(recipe)
    data, images = recipe.data, ARMS.section_of(recipe).most_images
    key = "batch_size" if data.meta_batch_size is None else "meta_batch_size"
    if images > (size := data.meta_batch_size or data.batch_size):
        message = f"a meta step has no more images than data.{key}: all of them are valued"
        yield Problem("designer.meta_images", str(images), f"1 to {size}", message)
    accepted = f"pictures of every class that data.evaluation.{recipe.evaluate.split} holds"
    steers = "no feedback picture holds these classes: nothing steers towards them"
    teaches = "no picture that probes learn from holds these classes: none will be predicted"
    for where, pictures, tasks, message in (
        ("data.feedback.sets", feedback, [*data.feedback.tasks], steers),
        ("data.evaluation.train", probed, probed_tasks(recipe), teaches),
    ):
        for name, classes in CLASSES_OF.items():
            if name in tasks and (missing := classes(evaluation) - classes(pictures)):
                shown = f"{name}: {abbreviated(map(str, sorted(missing)))}"
                yield Problem(where, shown, accepted, message)


def _other_normalisation(recipe: VisionRecipe) -> Iterator[Problem]:
    """Yield a warning if the checkpoint's image processor has another mean or deviation."""
    processor = {} if recipe.learner.model is None else image_processor(named(recipe.learner.model))
    for key, used in (("mean", recipe.learner.crops.mean), ("std", recipe.learner.crops.std)):
        own = processor.get(f"image_{key}")
        if own and processor.get("do_normalize", True) and not np.allclose(own, used, atol=1e-3):
            message = "pictures are normalised unlike those that the checkpoint was trained on"
            accepted = f"{own} (of its image processor)"
            yield Problem(f"learner.crops.{key}", str(list(used)), accepted, message)


def _labelled_classes(pictures: list[Picture]) -> set[int]:
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
    for picture in pictures:
        if picture.labels is not None:
            counts += torch.bincount(picture.labels.flatten(), minlength=len(counts))
    return {*counts[:IGNORE].nonzero()[:, 0].tolist()}


def _categories(pictures: list[Picture]) -> set[int]:
    return {picture.category for picture in pictures if picture.category is not None}


CLASSES_OF: Mapping[str, Callable[[list[Picture]], set[int]]] = {
    "segmentation": _labelled_classes,
    "classification": _categories,
}
"""By task, the function that returns the classes present in some pictures."""


def task_problems(
    recipe: VisionRecipe,
    streamed: int,
    tasks: dict[str, DownstreamTask],
    train: list[Picture],
    meta: list[Picture],
    probed: list[Picture],
    evaluation: list[Picture],
) -> Iterator[Problem]:
    """Yield the problems of tasks with missing or wrong targets, and of sets that are too small."""
    parts = {"data.feedback.sets (train)": train, "data.feedback.sets (meta)": meta}
    wanted: dict[str, list[str]] = {where: list(recipe.data.feedback.tasks) for where in parts}
    for name, pictures in (("train", probed), (recipe.evaluate.split, evaluation)):
        parts[f"data.evaluation.{name}"] = pictures
        wanted[f"data.evaluation.{name}"] = probed_tasks(recipe)
    for where, pictures in parts.items():
        yield from target_problems([tasks[name] for name in wanted[where]], pictures, where)
    section = recipe.data.feedback
    sizes = {"batch_size": recipe.data.batch_size, "meta_batch_size": recipe.data.meta_batch_size}
    for key, size in sizes.items():
        if size is not None and size > streamed:
            message = "each batch would hold some pictures more than once: the stream has fewer"
            yield Problem(f"data.{key}", str(size), f"1 to {streamed}", message)
    for name in section.tasks:
        count = sum(tasks[name].has(picture) for picture in meta)
        if count and count < (least := section.batch_size * section.batches):
            message = (
                f"the meta part is smaller than {section.batches} batches without a picture in "
                f"common for {name}"
            )
            accepted = f"1 to {count // section.batches}: there are {count} pictures (need {least})"
            yield Problem("data.feedback.batch_size", str(section.batch_size), accepted, message)
    if "knn" in recipe.evaluate.probes and recipe.evaluate.neighbours > len(probed):
        accepted = f"1 to {len(probed)}"
        message = "there are not so many training pictures"
        yield Problem("evaluate.neighbours", str(recipe.evaluate.neighbours), accepted, message)
