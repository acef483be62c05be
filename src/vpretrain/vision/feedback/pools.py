"""Seeded batches of labelled pictures, grouped by the tasks that they have targets for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from vpretrain.vision.data.images import Picture
from vpretrain.vision.feedback.tasks import DownstreamTask

TaskGroup = tuple[list[Picture], Sequence[DownstreamTask]]
"""Pictures, and the tasks that all of them have targets for."""


class Draws:
    """Endless seeded batches of indices below ``count``.

    The remainder at the end of a pass is dropped, so that no batch holds an index twice. If
    ``count`` is below ``size``, every batch holds all indices."""

    def __init__(self, count: int, size: int, seed: str) -> None:
        self.count, self.size, self.seed = count, min(size, count), seed
        self.batch = 0
        self._pass: tuple[int, list[int]] = (-1, [])

    def draw(self) -> list[int]:
        """Return the next batch; :attr:`batch` is the whole state."""
        number, at = divmod(self.batch, self.count // self.size)
        if self._pass[0] != number:
            order = random.Random(f"{self.seed} {number}").sample(range(self.count), self.count)
            self._pass = (number, order)
        self.batch += 1
        return self._pass[1][at * self.size : (at + 1) * self.size]


class Pool:
    """Endless batches of ``size`` pictures, all of which have targets for all the tasks."""

    def __init__(
        self, pictures: Sequence[Picture], tasks: Sequence[DownstreamTask], size: int, seed: str
    ) -> None:
        self.pictures, self.tasks, self.draws = pictures, tasks, Draws(len(pictures), size, seed)

    def draw(self) -> list[Picture]:
        """Return the next batch."""
        return [self.pictures[place] for place in self.draws.draw()]


def task_groups(pictures: Sequence[Picture], tasks: Iterable[DownstreamTask]) -> list[TaskGroup]:
    """Group tasks by the pictures that have targets for them.

    Tasks with the same pictures share one forward pass. Tasks without pictures are left out."""
    groups: dict[tuple[int, ...], list[DownstreamTask]] = {}
    for task in tasks:
        places = tuple(at for at, picture in enumerate(pictures) if task.has(picture))
        groups.setdefault(places, []).append(task)
    return [([pictures[at] for at in places], group) for places, group in groups.items() if places]


def split_evenly(
    pictures: Sequence[Picture], tasks: Collection[DownstreamTask], count: int, seed: str
) -> list[list[Picture]]:
    """Split the pictures that have targets at random into ``count`` disjoint parts.

    A picture is in one part for all of its tasks, the one with the fewest pictures for them. Hence
    of one or two tasks, each has equally many pictures in every part, to within one."""
    kinds: dict[tuple[str, ...], list[Picture]] = {}
    for picture in pictures:
        names = tuple(task.name for task in tasks if task.has(picture))
        kinds.setdefault(names, []).append(picture)
    kinds.pop((), None)
    parts: list[list[Picture]] = [[] for _ in range(count)]
    targets: list[Counter[str]] = [Counter() for _ in range(count)]
    # Pictures with fewer tasks come last: they can even out what the others leave.
    for names in sorted(kinds, key=len, reverse=True):
        members = kinds[names]
        for picture in random.Random(f"{seed} {names[0]}").sample(members, len(members)):
            part = min(
                range(count), key=lambda at: (sum(targets[at][n] for n in names), len(parts[at]))
            )
            parts[part].append(picture)
            targets[part].update(names)
    return parts


def shuffled(pictures: Sequence[Picture], seed: int) -> list[Picture]:
    """Give every picture the labels, depth and category of another one (a control).

    Targets rotate by one in a seeded order, among pictures of the same size with the same kinds of
    targets."""
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
