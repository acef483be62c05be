"""Light heads on frozen features, and the downstream tasks they are for: targets, loss, metric.

A head is 'linear-BN': batch normalisation and one linear map (a 1x1 convolution on patches), so
that whatever a score says, it says of the features.

Shapes: B pictures, D feature width, h x w patches, H x W pixels, C classes.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vpretrain.system.errors import Problem
from vpretrain.vision.backbone import Features
from vpretrain.vision.data.images import IGNORE, Picture, valid_depth

Size = tuple[int, int]
"""Height and width in pixels."""


class Head(nn.Module):
    """Batch normalisation and a linear map, computed in the head's own dtype whatever that of the
    features.

    Args:
        width: D.
        outputs: how many figures a patch (or picture) gets.
        generator: of the first weights (normal, standard deviation 0.01; the global generator is
            left alone).
        momentum: weight of the newest batch in the running statistics; None keeps their plain
            average over all batches, which is right where features do not change.
    """

    def __init__(
        self, width: int, outputs: int, generator: torch.Generator, momentum: float | None = 0.1
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, momentum=momentum)
        self.weight = nn.Parameter(
            torch.empty(outputs, width).normal_(std=0.01, generator=generator)
        )
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Features, size: Size) -> Tensor:
        """What the head says of every pixel of ``size``, or of the picture."""
        raise NotImplementedError

    def _per_picture(self, features: Features) -> Tensor:
        return functional.linear(
            self.norm(features.pooled.to(self.weight.dtype)), self.weight, self.bias
        )

    def _per_pixel(self, features: Features, size: Size) -> Tensor:
        """``[B, outputs, H, W]``: only the outputs are resized (bilinear), never the much wider
        features.
        """
        patches = features.patches.to(self.weight.dtype)
        normal = self.norm(patches.flatten(2)).unflatten(2, patches.shape[2:])
        outputs = functional.conv2d(normal, self.weight[:, :, None, None], self.bias)
        return functional.interpolate(outputs, size, mode="bilinear", align_corners=False)


class SegmentationHead(Head):
    """Class logits of every pixel."""

    def forward(self, features: Features, size: Size) -> Tensor:
        """``[B, C, H, W]`` logits for pictures of ``size``."""
        return self._per_pixel(features, size)


class DepthHead(Head):
    """Metres of every pixel.

    Args:
        width, generator, momentum: as for :class:`Head`.
        start_metres: what it says before it has learned anything (> 0): the mean of the training
            depths saves the steps that it would take to get there.
    """

    def __init__(
        self,
        width: int,
        generator: torch.Generator,
        momentum: float | None = 0.1,
        *,
        start_metres: float = 1.0,
    ) -> None:
        super().__init__(width, 1, generator, momentum)
        nn.init.constant_(self.bias, start_metres + math.log(-math.expm1(-start_metres)))

    def forward(self, features: Features, size: Size) -> Tensor:
        """``[B, H, W]`` metres > 0 (softplus) for pictures of ``size``."""
        return functional.softplus(self._per_pixel(features, size))[:, 0]


class ClassificationHead(Head):
    """Class logits of every picture."""

    def forward(self, features: Features, size: Size) -> Tensor:
        """``[B, C]`` logits; the size does not matter."""
        return self._per_picture(features)


class DownstreamTask(ABC):
    """What a head is asked for, and how its answers are counted.

    The loss on some pictures is ``losses(...).sum() / counts(...).sum()``: a mean over everything
    that counts in any of them, so that it can be computed in pieces. Pictures that it does not have
    targets for are none of its business.

    Attributes:
        name: unique among the tasks of one feedback set.
        metric: what its probe reports first (:mod:`vpretrain.vision.evaluation.probes`).
        higher_is_better: which way is up for that metric.
        dense: whether its head reads features of patches, not of whole pictures.
    """

    name: str
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    dense: ClassVar[bool] = True

    @abstractmethod
    def has(self, picture: Picture) -> bool:
        """Whether anything in this picture counts."""

    @abstractmethod
    def problems(self, pictures: Sequence[Picture], where: str) -> list[Problem]:
        """What is wrong with the targets of these pictures, or that there are none; ``where`` names
        them.
        """

    @abstractmethod
    def head(
        self,
        width: int,
        pictures: Sequence[Picture],
        generator: torch.Generator,
        momentum: float | None,
    ) -> Head:
        """A fresh head; ``pictures`` (its training set) may say where it starts. The rest is as for
        :class:`Head`.
        """

    @abstractmethod
    def targets(self, pictures: Sequence[Picture]) -> Tensor:
        """Stacked targets ``[B, ...]`` of pictures of one size, all of which it has."""

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``[B]``: the loss of each picture, summed over what counts; the graph is alive."""

    @abstractmethod
    def counts(self, targets: Tensor) -> Tensor:
        """``[B]``: how much counts in each picture."""


@dataclass(frozen=True)
class Segmentation(DownstreamTask):
    """Cross-entropy in nats over the pixels that are not void:
    ``-sum_p w[y_p] log p_p(y_p) / sum_p w[y_p]``.

    Args:
        classes: C; ids are 0 .. C - 1.
        class_weights: ``w``, one a class (see :func:`balanced`); empty counts every pixel alike.
        name: of this task.
    """

    classes: int
    class_weights: tuple[float, ...] = ()
    name: str = "segmentation"
    metric = "miou"
    higher_is_better = True

    def has(self, picture: Picture) -> bool:
        """Whether a pixel is labelled."""
        return picture.labels is not None and bool((picture.labels != IGNORE).any())

    def problems(self, pictures: Sequence[Picture], where: str) -> list[Problem]:
        """Class ids out of range, or no labelled pixel anywhere."""
        accepted = f"0 to {self.classes - 1}, and {IGNORE} for void"
        found = []
        for picture in pictures:
            if picture.labels is None:
                continue
            ids = picture.labels[picture.labels != IGNORE].unique()
            if len(wrong := ids[(ids < 0) | (ids >= self.classes)]):
                message = (
                    f"{picture.name} holds class ids that {self.name} does not have; give "
                    "it "
                    "more classes"
                )
                found.append(Problem(where, repr(wrong.tolist()), accepted, message))
        return found or _without(self, pictures, where, "a label map with a pixel that is not void")

    def head(
        self,
        width: int,
        pictures: Sequence[Picture],
        generator: torch.Generator,
        momentum: float | None,
    ) -> Head:
        """A fresh head."""
        return SegmentationHead(width, self.classes, generator, momentum)

    def targets(self, pictures: Sequence[Picture]) -> Tensor:
        """``[B, H, W]`` int64."""
        return torch.stack([picture.labels for picture in pictures if picture.labels is not None])

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``[B]`` from logits ``[B, C, H, W]``."""
        weights = self._weights(outputs)
        return functional.cross_entropy(
            outputs, targets, weight=weights, ignore_index=IGNORE, reduction="none"
        ).sum(dim=(1, 2))

    def counts(self, targets: Tensor) -> Tensor:
        """``[B]`` float32: weights of the pixels that are not void, summed."""
        counted = targets != IGNORE
        weights = self._weights(torch.empty(0, device=targets.device))
        return (weights[targets.where(counted, 0)] * counted).sum(dim=(1, 2))

    def _weights(self, like: Tensor) -> Tensor:
        return (
            like.new_tensor(self.class_weights)
            if self.class_weights
            else like.new_ones(self.classes)
        )


@dataclass(frozen=True)
class Depth(DownstreamTask):
    """Distance in metres over the valid pixels: the mean of ``|predicted - true|`` (eq. 51) or of
    its square (probe).

    Args:
        loss: ``l1`` or ``l2``.
        valid_metres: a depth counts above the first and up to the second.
        name: of this task.
    """

    loss: Literal["l1", "l2"] = "l1"
    valid_metres: tuple[float, float] = (1e-3, 10.0)
    name: str = "depth"
    metric = "rmse"
    higher_is_better = False

    def valid(self, depth: Tensor) -> Tensor:
        """True where a depth counts; never where it is not a number."""
        return valid_depth(depth, *self.valid_metres)

    def has(self, picture: Picture) -> bool:
        """Whether a pixel's depth is valid."""
        return picture.depth is not None and bool(self.valid(picture.depth).any())

    def problems(self, pictures: Sequence[Picture], where: str) -> list[Problem]:
        """No valid pixel anywhere."""
        low, high = self.valid_metres
        return _without(
            self, pictures, where, f"a depth map with a pixel of {low:g} to {high:g} metres"
        )

    def head(
        self,
        width: int,
        pictures: Sequence[Picture],
        generator: torch.Generator,
        momentum: float | None,
    ) -> Head:
        """A fresh head that starts at the mean depth of the pictures."""
        depths = [p.depth[self.valid(p.depth)] for p in pictures if p.depth is not None]
        return DepthHead(width, generator, momentum, start_metres=float(torch.cat(depths).mean()))

    def targets(self, pictures: Sequence[Picture]) -> Tensor:
        """``[B, H, W]`` metres."""
        return torch.stack([picture.depth for picture in pictures if picture.depth is not None])

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``[B]`` from metres ``[B, H, W]``."""
        valid = self.valid(targets)
        difference = (outputs - targets.where(valid, 0)) * valid
        return (difference.abs() if self.loss == "l1" else difference.square()).sum(dim=(1, 2))

    def counts(self, targets: Tensor) -> Tensor:
        """``[B]`` float32: valid pixels."""
        return self.valid(targets).sum(dim=(1, 2)).float()


@dataclass(frozen=True)
class Classification(DownstreamTask):
    """Cross-entropy in nats of the picture's category, averaged over pictures.

    Args:
        classes: C; categories are 0 .. C - 1.
        name: of this task.
    """

    classes: int
    name: str = "classification"
    metric = "accuracy"
    higher_is_better = True
    dense = False

    def has(self, picture: Picture) -> bool:
        """Whether the picture has a category."""
        return picture.category is not None

    def problems(self, pictures: Sequence[Picture], where: str) -> list[Problem]:
        """Categories out of range, or none anywhere."""
        message = "{} has a category that {} does not have; give it more classes"
        found = [
            Problem(
                where,
                repr(p.category),
                f"0 to {self.classes - 1}",
                message.format(p.name, self.name),
            )
            for p in pictures
            if p.category is not None and not 0 <= p.category < self.classes
        ]
        return found or _without(self, pictures, where, "a category")

    def head(
        self,
        width: int,
        pictures: Sequence[Picture],
        generator: torch.Generator,
        momentum: float | None,
    ) -> Head:
        """A fresh head."""
        return ClassificationHead(width, self.classes, generator, momentum)

    def targets(self, pictures: Sequence[Picture]) -> Tensor:
        return torch.tensor([picture.category for picture in pictures], dtype=torch.int64)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``[B]`` from logits ``[B, C]``."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def counts(self, targets: Tensor) -> Tensor:
        return torch.ones(len(targets), device=targets.device)


def mean_loss(task: DownstreamTask, outputs: Tensor, targets: Tensor) -> Tensor:
    """The task's loss on one batch, a scalar with its graph to the outputs."""
    return task.losses(outputs, targets).sum() / task.counts(targets).sum()


def target_problems(
    tasks: Sequence[DownstreamTask], pictures: Sequence[Picture], where: str
) -> list[Problem]:
    """What is wrong with the pictures for these tasks; also that one task's pictures are of several
    sizes.
    """
    found = []
    for task in tasks:
        found += task.problems(pictures, where)
        sizes = {picture.size: picture.name for picture in pictures if task.has(picture)}
        if len(sizes) > 1:
            shown = ", ".join(
                f"{height} x {width} ({name})" for (height, width), name in sizes.items()
            )
            message = (
                f"pictures of {task.name} are stacked into batches and have to be of one "
                "size; read them at one"
            )
            found.append(Problem(where, shown, "one height and width", message))
    return found


def balanced(pictures: Sequence[Picture], classes: int) -> tuple[float, ...]:
    """Class weights under which every class that occurs has the same say: ``N / (K n_c)``, whose
    mean over pixels is 1.

    N labelled pixels, ``n_c`` of them of class c, K classes that occur. Those that never do are not
    up-weighted (1).
    """
    counts = torch.zeros(classes, dtype=torch.float64)
    for picture in pictures:
        if picture.labels is not None:
            counts += torch.bincount(picture.labels[picture.labels != IGNORE], minlength=classes)
    occurs = counts > 0
    weights = counts.sum() / (occurs.sum() * counts.clamp_min(1))
    return tuple(weights.where(occurs, 1.0).tolist())


class Draws:
    """Endless seeded batches of ``count`` things, by their places; in a pass none comes twice.

    What does not fill a batch at the end of a pass is left out of it, so that a batch never holds
    anything twice.

    Args:
        count: how many things there are; a batch holds all of them where there are fewer than
            ``size``.
        size: of a batch.
        seed: of the passes' orders.
    """

    def __init__(self, count: int, size: int, seed: str) -> None:
        self.count, self.size, self.seed = count, min(size, count), seed
        self.batch = 0
        self._pass: tuple[int, list[int]] = (-1, [])

    def draw(self) -> list[int]:
        """The next batch; :attr:`batch` is all the state there is."""
        number, at = divmod(self.batch, self.count // self.size)
        if self._pass[0] != number:
            order = random.Random(f"{self.seed} {number}").sample(range(self.count), self.count)
            self._pass = (number, order)
        self.batch += 1
        return self._pass[1][at * self.size : (at + 1) * self.size]


def _without(
    task: DownstreamTask, pictures: Sequence[Picture], where: str, needed: str
) -> list[Problem]:
    if any(task.has(picture) for picture in pictures):
        return []
    message = (
        f"nothing here can be learned for {task.name}: add such pictures, or leave the task out"
    )
    return [
        Problem(
            where,
            f"{len(pictures)} pictures, none usable",
            f"at least one picture with {needed}",
            message,
        )
    ]
