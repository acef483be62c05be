"""Run all probes and retrieval sets of a recipe on frozen features."""

from __future__ import annotations

from collections.abc import Mapping

from vpretrain.run.scores import Score
from vpretrain.vision.data.checks import probed_tasks
from vpretrain.vision.data.images import Picture
from vpretrain.vision.data.loading import PictureSets
from vpretrain.vision.data.picture_store import GIB
from vpretrain.vision.evaluation.probes import (
    classification_probe,
    depth_probe,
    knn,
    segmentation_probe,
)
from vpretrain.vision.evaluation.retrieval import descriptors, retrieval
from vpretrain.vision.feedback.features import Encoder, FrozenFeatures, freeze_within
from vpretrain.vision.feedback.tasks import Classification, Depth, DownstreamTask, Segmentation
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.recipe.evaluate import VisionEvaluate

METRICS: Mapping[str, Mapping[str, str]] = {
    "segmentation": {"miou": "miou", "probe_cross_entropy": "cross_entropy"},
    "depth": {"depth_rmse": "rmse", "depth_abs_rel": "abs_rel", "depth_delta_1": "delta_1"},
    "classification": {"accuracy": "accuracy"},
}
"""By task, the score names of a run and the probe's metrics that they report."""


def evaluate(recipe: VisionRecipe, sets: PictureSets, encoder: Encoder) -> dict[str, Score]:
    """Return all scores of a recipe by name, ``SPLIT/METRIC``."""
    section = recipe.evaluate
    dense = any(sets.tasks[name].dense for name in probed_tasks(recipe))
    known: dict[tuple[int, ...], FrozenFeatures] = {}

    def frozen(pictures: list[Picture], task: DownstreamTask) -> FrozenFeatures:
        usable = [picture for picture in pictures if task.has(picture)]
        key = tuple(map(id, usable))
        if key not in known:  # tasks that share their pictures share the features
            known[key] = freeze_within(encoder, usable, section.memory_gib * GIB, patches=dense)
        return known[key]

    scores: dict[str, Score] = {}
    for probe in section.probes:
        task = sets.tasks["classification" if probe == "knn" else probe]
        train, test = (frozen(pictures, task) for pictures in (sets.probed, sets.evaluation))
        if probe == "knn":
            scores["knn"] = knn(train, test, neighbours=section.neighbours)
        else:
            scores |= _probe(section, task, train, test)
    for name, searched in sets.retrieval.items():
        patches = section.retrieval[name].pooling == "patches"
        queries = descriptors(encoder, searched.queries, patches=patches)
        database = descriptors(encoder, searched.database, patches=patches)
        ranked = retrieval(queries, database, searched.relevance)
        scores |= {f"{name}_{metric}": score for metric, score in ranked.items()}
    return {f"{section.split}/{name}": score for name, score in scores.items()}


def _probe(
    section: VisionEvaluate, task: DownstreamTask, train: FrozenFeatures, test: FrozenFeatures
) -> dict[str, Score]:
    settings = section.probe
    if isinstance(task, Segmentation):
        balanced = section.class_balanced
        probed = segmentation_probe(
            train, test, classes=task.classes, settings=settings, class_balanced=balanced
        )
    elif isinstance(task, Classification):
        probed = classification_probe(train, test, classes=task.classes, settings=settings)
    else:
        assert isinstance(task, Depth)
        settings = section.depth_probe or section.probe
        probed = depth_probe(train, test, settings=settings, valid_metres=task.valid_metres)
    return {name: probed.scores[metric] for name, metric in METRICS[task.name].items()}
