"""Seeded batches of labelled pictures, grouped by the tasks that they have targets for."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from vpretrain.vision.data.images import Picture
from vpretrain.vision.feedback.tasks import DownstreamTask

Targeted = tuple[list[Picture], Sequence[DownstreamTask]]
"""Pictures, and the tasks that all of them have targets for."""


class Draws:
    """Endless seeded batches of ``count`` things, by their places.

    What does not fill a batch at the end of a pass is left out, so that none holds anything twice;
    where there are fewer than ``size``, a batch is all of them."""

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


class Pool:
    """Endless batches, of ``size``, of pictures that all have targets for all the tasks."""

    def __init__(
        self, pictures: Sequence[Picture], tasks: Sequence[DownstreamTask], size: int, seed: str
    ) -> None:
        self.pictures, self.tasks, self.draws = pictures, tasks, Draws(len(pictures), size, seed)

    def draw(self) -> list[Picture]:
        """The next batch."""
        return [self.pictures[place] for place in self.draws.draw()]


def pooled(pictures: Sequence[Picture], tasks: Iterable[DownstreamTask]) -> list[Targeted]:
    """Each task's pictures; tasks that have the same ones stand together, so that one forward pass
    serves them all."""
    groups: dict[tuple[int, ...], list[DownstreamTask]] = {}
    for task in tasks:
        places = tuple(at for at, picture in enumerate(pictures) if task.has(picture))
        groups.setdefault(places, []).append(task)
    return [([pictures[at] for at in places], group) for places, group in groups.items() if places]


def shuffled(pictures: Sequence[Picture], seed: int) -> list[Picture]:
    """The same images with the labels, depth and category of others (a control): targets go once
    around a seeded circle of the pictures of one size with targets of the same kinds."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at, p in enumerate(pictures):
        kind = (p.size, p.labels is None, p.depth is None, p.category is None)
        groups.setdefault(kind, []).append(at)
    result = list(pictures)
    for places in groups.values():
        order = random.Random(f"shuffled {seed}").sample(places, len(places))
        for at, other in zip(order, order[1:] + order[:1], strict=True):
            donor = pictures[other]
            result[at] = replace(
                pictures[at], labels=donor.labels, depth=donor.depth, category=donor.category
            )
    return result
