"""Probes of frozen features: linear segmentation, depth and classification, and k-NN.

A linear probe trains a linear-BN head on frozen features of labelled pictures and scores it on
others. Items and standard errors are over pictures, because the pixels of a picture are not
independent.

Shapes: N pictures, C classes, H x W pixels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from vpretrain.config.section import Section
from vpretrain.run.scores import Score, score
from vpretrain.system.errors import UserError, user_error
from vpretrain.system.phases import phase
from vpretrain.vision.backbone import Features
from vpretrain.vision.data.images import IGNORE
from vpretrain.vision.feedback.features import FrozenFeatures, StoredFeatures
from vpretrain.vision.feedback.heads import Head, Size
from vpretrain.vision.feedback.pools import Draws
from vpretrain.vision.feedback.tasks import (
    Classification,
    Depth,
    DownstreamTask,
    Segmentation,
    balanced,
    mean_loss,
    target_problems,
)
from vpretrain.vision.fields import Side

SCORED_PICTURES = 16
"""Pictures that are scored at a time."""
RESAMPLES = 1000
"""Bootstrap resamples for the standard error of the mIoU."""


class ProbeSettings(Section):
    """Training of a linear-BN head on frozen features: AdamW, warm-up, then a cosine to zero."""

    steps: PositiveInt = 500
    """Training steps; the paper takes 20,000."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 0.05
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip_norm: PositiveFloat = 1.0
    train_size: Side | None = None
    """Height and width at which the training loss is computed; scores are always at the size of the
    pictures."""
    refits: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """Seeds; the probe is fitted once per seed, and scores are means over the fits."""


@dataclass(frozen=True)
class ProbeResult:
    """Results of a probe.

    Args:
        scores: scores by metric, the task's main metric first.
        refit_std: standard deviation of each score over the fits; empty after a single fit.
    """

    scores: dict[str, Score]
    refit_std: dict[str, float]


def segmentation_probe(
    train: FrozenFeatures,
    test: FrozenFeatures,
    *,
    classes: int,
    settings: ProbeSettings,
    class_balanced: bool = False,
) -> ProbeResult:
    """Linear-BN segmentation: ``miou`` in [0, 1] and ``cross_entropy`` in nats per non-void pixel.

    The mIoU is that of the confusion matrix over all test pixels, averaged over the classes that
    occur in labels or predictions; its standard error is bootstrapped over pictures. Both scores
    are ratios of sums over pictures, and their items are the linearisation (:func:`linearised`):
    the mean of the items is the score, but a single item can be out of its range.

    Args:
        train: pictures that the head trains on; those without a labelled pixel are left out.
        test: pictures that it is scored on; those without a labelled pixel are left out.
        classes: C.
        settings: training of the head.
        class_balanced: weight the training loss, but not the scores, by class
            (:func:`vpretrain.vision.feedback.tasks.balanced`).

    Raises:
        UserError: fewer than two usable pictures, or class ids out of range.
    """
    task = Segmentation(classes)
    train, test = _usable(task, train, "train"), _usable(task, test, "test")
    trained_on = (
        Segmentation(classes, balanced(train.pictures, classes)) if class_balanced else task
    )
    overlaps, losses = [], []
    for head in _fits(trained_on, train, settings):
        pieces = [
            (
                _overlap(outputs, targets, classes),
                task.losses(outputs, targets),
                task.counts(targets),
            )
            for outputs, targets in _outputs(task, head, test)
        ]
        overlap, loss, count = (
            torch.cat(each).double().cpu() for each in zip(*pieces, strict=True)
        )
        overlaps.append((overlap[:, 0], overlap[:, 1]))
        losses.append((loss[:, None], count[:, None]))
    return _result(
        {
            "miou": ([linearised(*each) for each in overlaps], True),
            "cross_entropy": ([linearised(*each) for each in losses], False),
        },
        stderr={"miou": bootstrap_stderr(overlaps)},
    )


def depth_probe(
    train: FrozenFeatures,
    test: FrozenFeatures,
    *,
    settings: ProbeSettings,
    valid_metres: tuple[float, float] = (1e-3, 10.0),
) -> ProbeResult:
    """Linear-BN depth (squared error): ``rmse`` in metres, ``abs_rel``, and ``delta_1`` in [0, 1].

    Over the valid pixels of a picture: the root of the mean squared error, the mean of
    ``|predicted - true| / true``, and the fraction where
    ``max(predicted / true, true / predicted) < 1.25``. Each is averaged over pictures. Predictions
    are clipped to the valid range.

    Args:
        train: pictures that the head trains on; those without a valid pixel are left out.
        test: pictures that it is scored on; those without a valid pixel are left out.
        settings: training of the head.
        valid_metres: valid depths, above the first and up to the second.

    Raises:
        UserError: fewer than two usable pictures.
    """
    task = Depth("l2", valid_metres)
    train, test = _usable(task, train, "train"), _usable(task, test, "test")
    fits = []
    for head in _fits(task, train, settings):
        errors = [
            depth_errors(outputs.clamp(*valid_metres), targets, task.valid(targets))
            for outputs, targets in _outputs(task, head, test)
        ]
        fits.append(torch.cat(errors).double().cpu())
    rmse, abs_rel, delta_1 = ([fit[:, at] for fit in fits] for at in range(3))
    return _result({"rmse": (rmse, False), "abs_rel": (abs_rel, False), "delta_1": (delta_1, True)})


def classification_probe(
    train: FrozenFeatures, test: FrozenFeatures, *, classes: int, settings: ProbeSettings
) -> ProbeResult:
    """Linear-BN classification of pooled features.

    The scores are ``accuracy`` in [0, 1] and ``cross_entropy`` in nats.

    Raises:
        UserError: fewer than two pictures with a category, or a category out of range.
    """
    task = Classification(classes)
    train, test = _usable(task, train, "train"), _usable(task, test, "test")
    right, losses = [], []
    for head in _fits(task, train, settings):
        pieces = [(o.argmax(dim=1) == t, task.losses(o, t)) for o, t in _outputs(task, head, test)]
        hits, loss = (torch.cat(each).double().cpu() for each in zip(*pieces, strict=True))
        right.append(hits)
        losses.append(loss)
    return _result({"accuracy": (right, True), "cross_entropy": (losses, False)})


def knn(train: FrozenFeatures, test: FrozenFeatures, *, neighbours: int) -> Score:
    """k-NN accuracy on pooled features, by cosine distance with votes weighted by its inverse.

    Raises:
        UserError: fewer than two pictures with a category, or fewer training pictures than
            ``neighbours``.
    """
    from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]

    pictures = (*train.pictures, *test.pictures)
    task = Classification(
        1 + max((p.category for p in pictures if p.category is not None), default=0)
    )
    train, test = _usable(task, train, "train"), _usable(task, test, "test")
    if not 1 <= neighbours <= len(train.pictures):
        message, accepted = "there are not so many training pictures", f"1 to {len(train.pictures)}"
        raise user_error("evaluate.neighbours", message, value=neighbours, accepted=accepted)
    classifier = KNeighborsClassifier(neighbours, metric="cosine", weights="distance")
    classifier.fit(_numbers(train.pooled), task.targets(train.pictures).numpy())
    right = classifier.predict(_numbers(test.pooled)) == task.targets(test.pictures).numpy()
    return score(torch.from_numpy(right), higher_is_better=True)


def linearised(totals: Tensor, counts: Tensor) -> Tensor:
    """Linearise a mean over classes of ratios of sums, ``R = mean_c T_c / U_c``, over pictures.

    ``item_i = R + mean_c N (t_ic - R_c u_ic) / U_c`` with ``T_c = sum_i t_ic``,
    ``U_c = sum_i u_ic``, ``R_c = T_c / U_c``. The mean of the items is R, and their standard
    deviation divided by the root of N is its standard error to first order. Arms can thus be paired
    picture by picture in a score that is not a mean over pictures (intersection over union).

    Args:
        totals: ``t``, ``[N, C]`` float64.
        counts: ``u``, ``[N, C]`` float64, >= 0; classes whose counts are all 0 are left out.

    Returns:
        ``[N]`` float64.
    """
    occurs = counts.sum(dim=0) > 0
    totals, counts = totals[:, occurs], counts[:, occurs]
    ratio = totals.sum(dim=0) / counts.sum(dim=0)
    return (ratio + len(totals) * (totals - ratio * counts) / counts.sum(dim=0)).mean(dim=1)


def bootstrap_stderr(fits: Sequence[tuple[Tensor, Tensor]], *, seed: int = 0) -> float:
    """Bootstrap the standard error over pictures of :func:`linearised`'s R, averaged over fits.

    Args:
        fits: totals and counts of each fit, ``[N, C]`` float64.
        seed: seed of the resamples.
    """
    pictures = len(fits[0][0])
    generator = numpy.random.default_rng(seed)
    draws = generator.multinomial(pictures, numpy.full(pictures, 1 / pictures), size=RESAMPLES)
    weights = torch.from_numpy(draws).double()
    # A class that does not occur in a resample is left out of its mean (0 / 0 is NaN).
    means = [(weights @ totals / (weights @ counts)).nanmean(dim=1) for totals, counts in fits]
    return float(torch.stack(means).mean(dim=0).std())


def depth_errors(predicted: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Return RMSE, AbsRel and delta_1 of each picture over its valid pixels, ``[N, 3]``.

    All arguments are ``[N, H, W]``. Every picture must have a valid pixel, and predictions must be
    above 0."""
    true = depth.where(valid, 1)  # any value above 0; these pixels are masked out
    difference = predicted - true
    ratio = torch.maximum(predicted / true, true / predicted)
    pixels = torch.stack(
        [difference.square(), difference.abs() / true, (ratio < 1.25).to(true.dtype)]
    )
    means = (pixels * valid).sum(dim=(2, 3)) / valid.sum(dim=(1, 2))
    return torch.stack([means[0].sqrt(), means[1], means[2]], dim=1)


def _fits(task: DownstreamTask, train: FrozenFeatures, settings: ProbeSettings) -> Iterator[Head]:
    for seed in settings.refits:
        yield fit(task, train, settings, seed)


@torch.enable_grad()
def fit(task: DownstreamTask, train: FrozenFeatures, settings: ProbeSettings, seed: int) -> Head:
    """Train a head on frozen features and return it in evaluation mode.

    The global RNG is not used."""
    generator = torch.Generator().manual_seed(seed)
    device = train.pooled.device
    # Features do not change, so the plain average of the batches' statistics is the best estimate
    # (momentum None).
    head = task.head(train.width, train.pictures, generator, None).to(device).train()
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    draws = Draws(len(train.pictures), settings.batch_size, f"probe {seed}")
    warmup = settings.warmup_fraction * settings.steps
    for step in phase(f"{task.name} probe, steps", range(settings.steps), settings.steps):
        rising = (step + 1) / (warmup + 1)
        falling = (1 + math.cos(math.pi * max(0.0, step - warmup) / (settings.steps - warmup))) / 2
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(rising, falling)
        batch = inputs_of(task, train, draws.draw())
        targets = task.targets(batch.pictures).to(device)
        if settings.train_size is not None and targets.ndim == 3:
            targets = _nearest(targets, settings.train_size)
        if not float(task.counts(targets).sum()):
            continue  # at a small train_size, all valid pixels can be lost
        size = (targets.shape[1], targets.shape[2]) if targets.ndim == 3 else (1, 1)
        optimizer.zero_grad(set_to_none=True)
        mean_loss(task, head(batch.features, size), targets).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), settings.clip_norm)
        optimizer.step()
    return head.eval()


def inputs_of(
    task: DownstreamTask, frozen: FrozenFeatures, places: Sequence[int]
) -> StoredFeatures:
    """Return the features of some pictures that the task's head reads.

    Patch features are left empty if the head does not read them."""
    if task.dense:
        return frozen.at(places)
    pooled = frozen.pooled[torch.tensor(places, device=frozen.pooled.device)]
    none = pooled.new_empty(len(places), frozen.width, 0, 0)
    return StoredFeatures([frozen.pictures[place] for place in places], Features(none, pooled))


@torch.no_grad()
def _outputs(
    task: DownstreamTask, head: Head, test: FrozenFeatures
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield outputs at the pictures' own size with their targets, in chunks of pictures."""
    for start in range(0, len(test.pictures), SCORED_PICTURES):
        places = range(start, min(start + SCORED_PICTURES, len(test.pictures)))
        some = inputs_of(task, test, places)
        outputs = head(some.features, some.pictures[0].size)
        yield outputs, task.targets(some.pictures).to(outputs.device)


def _overlap(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return intersection and union in pixels of each class in each picture, ``[N, 2, C]``."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    overlaps = []
    for predicted, true in zip(logits.argmax(dim=1), labels, strict=True):
        confusion = multiclass_confusion_matrix(
            predicted, true, classes, ignore_index=IGNORE, validate_args=False
        )
        both = confusion.diagonal()
        overlaps.append(torch.stack([both, confusion.sum(dim=0) + confusion.sum(dim=1) - both]))
    return torch.stack(overlaps)


def _usable(task: DownstreamTask, frozen: FrozenFeatures, part: str) -> FrozenFeatures:
    """Select the pictures that have targets for the task; at least two, else a UserError."""
    where = f"evaluate.{task.name}.{part}"
    if problems := target_problems([task], frozen.pictures, where):
        raise UserError(*problems)
    places = [at for at, picture in enumerate(frozen.pictures) if task.has(picture)]
    if len(places) < 2:
        message = "a head is normalised over pictures, and scores have a spread: add pictures"
        raise user_error(where, message, value=len(places), accepted="2 or more")
    return frozen if len(places) == len(frozen.pictures) else frozen.part(places)


def _result(
    metrics: Mapping[str, tuple[Sequence[Tensor], bool]], stderr: Mapping[str, float] = {}
) -> ProbeResult:
    """Make scores from the items ``[N]`` of every fit, averaged over fits."""
    scores, spread = {}, {}
    for name, (fits, higher_is_better) in metrics.items():
        items = torch.stack(list(fits)).mean(dim=0)
        mean = score(items, higher_is_better=higher_is_better)
        scores[name] = replace(mean, stderr=stderr.get(name, mean.stderr))
        if len(fits) > 1:
            spread[name] = statistics.stdev(float(fit.mean()) for fit in fits)
    return ProbeResult(scores, spread)


def _nearest(targets: Tensor, size: Size) -> Tensor:
    """Resize maps ``[N, H, W]`` by nearest neighbour, without new values."""
    maps = functional.interpolate(targets[:, None].double(), size, mode="nearest-exact")
    return maps[:, 0].to(targets.dtype)


def _numbers(features: Tensor) -> numpy.ndarray:
    return features.float().cpu().numpy()
