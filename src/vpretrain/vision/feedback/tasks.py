"""Downstream tasks: targets and loss of segmentation, depth and classification.

Shapes: B pictures, D feature width, H x W pixels, C classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from vpretrain.system.errors import Problem
from vpretrain.vision.data.images import IGNORE, Picture, valid_depth
from vpretrain.vision.feedback.heads import ClassificationHead, DepthHead, Head


class DownstreamTask(ABC):
    """Targets and loss of one kind of label.

    The loss on some pictures is ``losses(...).sum() / counts(...).sum()``, a mean over all valid
    pixels (or pictures), which can be computed in pieces.

    Attributes:
        name: unique among the tasks of a feedback set.
        dense: whether its head reads patch features rather than pooled ones.
    """

    name: ClassVar[str]
    dense: ClassVar[bool] = True

    @abstractmethod
    def has(self, picture: Picture) -> bool:
        """Whether the picture has a valid target."""

    @abstractmethod
    def problems(self, pictures: Sequence[Picture], where: str) -> list[Problem]:
        """Return the problems of the pictures' targets, or one if there are none."""

    @abstractmethod
    def head(
        self,
        width: int,
        pictures: Sequence[Picture],
        generator: torch.Generator,
        momentum: float | None,
    ) -> Head:
        """Make a new head; its initial output may depend on the training pictures."""

    @abstractmethod
    def targets(self, pictures: Sequence[Picture]) -> Tensor:
        """Stack the targets ``[B, ...]`` of pictures of one size, all of which have one."""

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``[B]``, each picture's loss summed over its valid pixels; gradients flow."""

    @abstractmethod
    def counts(self, targets: Tensor) -> Tensor:
        """Return ``[B]``, each picture's weight in the mean, such as its number of valid pixels."""


@dataclass(frozen=True)
class ClassTask(DownstreamTask):
    """A task with C classes, 0 .. C - 1."""

    classes: int
    head_type: ClassVar[type[Head]]

    def head(
        self,
        width: int,
        pictures: Sequence[Picture],
        generator: torch.Generator,
        momentum: float | None,
    ) -> Head:
        return self.head_type(width, self.classes, generator, momentum)


@dataclass(frozen=True)
class Segmentation(ClassTask):
    """Semantic segmentation with cross-entropy in nats over non-void pixels.

    The loss is ``-sum_p w[y_p] log p_p(y_p) / sum_p w[y_p]``.

    Args:
        classes: C.
        class_weights: ``w``, one per class (see :func:`balanced`); empty: all pixels have weight 1.
    """

    class_weights: tuple[float, ...] = ()
    name = "segmentation"
    head_type = Head

    def has(self, picture: Picture) -> bool:
        return picture.labels is not None and bool((picture.labels != IGNORE).any())

    def problems(self, pictures: Sequence[Picture], where: str) -> list[Problem]:
        """Return class ids out of range, or a problem if no pixel is labelled."""
        accepted = f"0 to {self.classes - 1}, and {IGNORE} for void"
        problems = []
        for picture in pictures:
            if picture.labels is None:
                continue
            ids = picture.labels
            # Before `unique`, which sorts: at each evaluation, minutes for some 10,000 pictures.
            wrong = ids[(ids != IGNORE) & ((ids < 0) | (ids >= self.classes))]
            if len(wrong):
                message = f"{picture.name} has class ids out of range; give more classes"
                problems.append(Problem(where, repr(wrong.unique().tolist()), accepted, message))
        return problems or _without(
            self, pictures, where, "a label map with a pixel that is not void"
        )

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
        """``[B]`` float32: summed weights of non-void pixels."""
        counted = targets != IGNORE
        weights = self._weights(torch.empty(0, device=targets.device))
        return (weights[targets.where(counted, 0)] * counted).sum(dim=(1, 2))

    def _weights(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.class_weights or (1.0,) * self.classes)


@dataclass(frozen=True)
class Depth(DownstreamTask):
    """Depth estimation in metres.

    The loss is the mean of ``|predicted - true|`` (eq. 51) or of its square (probe) over valid
    pixels.

    Args:
        loss: ``l1`` or ``l2``.
        valid_metres: valid depths, above the first and up to the second.
    """

    loss: Literal["l1", "l2"] = "l1"
    valid_metres: tuple[float, float] = (1e-3, 10.0)
    name = "depth"

    def valid(self, depth: Tensor) -> Tensor:
        """Return a mask, True where a depth is valid; False at NaN."""
        return valid_depth(depth, *self.valid_metres)

    def has(self, picture: Picture) -> bool:
        return picture.depth is not None and bool(self.valid(picture.depth).any())

    def problems(self, pictures: Sequence[Picture], where: str) -> list[Problem]:
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
        """Make a new head whose initial output is the mean depth of the pictures."""
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
        """``[B]`` float32: number of valid pixels."""
        return self.valid(targets).sum(dim=(1, 2)).float()


@dataclass(frozen=True)
class Classification(ClassTask):
    """Classification of whole pictures: cross-entropy in nats, averaged over pictures."""

    name = "classification"
    head_type = ClassificationHead
    dense = False

    def has(self, picture: Picture) -> bool:
        return picture.category is not None

    def problems(self, pictures: Sequence[Picture], where: str) -> list[Problem]:
        """Return categories out of range, or a problem if no picture has one."""
        accepted, message = f"0 to {self.classes - 1}", "has a category out of range"
        problems = [
            Problem(where, repr(p.category), accepted, f"{p.name} {message}; give more classes")
            for p in pictures
            if p.category is not None and not 0 <= p.category < self.classes
        ]
        return problems or _without(self, pictures, where, "a category")

    def targets(self, pictures: Sequence[Picture]) -> Tensor:
        return torch.tensor([picture.category for picture in pictures], dtype=torch.int64)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``[B]`` from logits ``[B, C]``."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def counts(self, targets: Tensor) -> Tensor:
        return torch.ones(len(targets), device=targets.device)


def mean_loss(task: DownstreamTask, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the task's loss on one batch, a scalar; gradients flow to the outputs."""
    return task.losses(outputs, targets).sum() / task.counts(targets).sum()


def target_problems(
    tasks: Sequence[DownstreamTask], pictures: Sequence[Picture], where: str
) -> list[Problem]:
    """Return the problems of the pictures for these tasks, including different sizes."""
    problems = []
    for task in tasks:
        problems += task.problems(pictures, where)
        sizes = {picture.size: picture.name for picture in pictures if task.has(picture)}
        if len(sizes) > 1:
            shown = ", ".join(f"{h} x {w} ({name})" for (h, w), name in sizes.items())
            message = f"pictures of {task.name} are batched and have to be of one size: set `size`"
            problems.append(Problem(where, shown, "one height and width", message))
    return problems


def balanced(pictures: Sequence[Picture], classes: int) -> tuple[float, ...]:
    """Return class weights ``N / (K n_c)`` that balance the classes; their mean over pixels is 1.

    N is the number of labelled pixels, ``n_c`` that of class c, K the number of classes that occur.
    Classes that do not occur have weight 1."""
    counts = torch.zeros(classes, dtype=torch.float64)
    for picture in pictures:
        if picture.labels is not None:
            counts += torch.bincount(picture.labels[picture.labels != IGNORE], minlength=classes)
    occurs = counts > 0
    weights = counts.sum() / (occurs.sum() * counts.clamp_min(1))
    return tuple(weights.where(occurs, 1.0).tolist())


def _without(
    task: DownstreamTask, pictures: Sequence[Picture], where: str, needed: str
) -> list[Problem]:
    if any(task.has(picture) for picture in pictures):
        return []
    message = f"nothing here can be learned for {task.name}: add such pictures, or leave it out"
    shown, accepted = (
        f"{len(pictures)} pictures, none usable",
        f"at least one picture with {needed}",
    )
    return [Problem(where, shown, accepted, message)]
