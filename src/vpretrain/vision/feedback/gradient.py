"""The feedback set of vision: labelled pictures, heads on frozen features, and the gradient through
the heads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vpretrain.method import vectors
from vpretrain.method.roles import Feedback, Gradient
from vpretrain.system.contexts import evaluating, frozen
from vpretrain.system.errors import Problem, UserError, abbreviated
from vpretrain.system.phases import phase
from vpretrain.vision.data.images import Picture
from vpretrain.vision.data.kept import GIB
from vpretrain.vision.feedback.features import (
    Encoder,
    Frozen,
    freeze,
    freeze_within,
    images_for,
)
from vpretrain.vision.feedback.pools import Pool, Targeted, pooled
from vpretrain.vision.feedback.tasks import DownstreamTask, mean_loss, target_problems

WARM_UP_BYTES = 8 * GIB
"""For the frozen features of one task's pictures while its heads are warmed up."""
CHUNK_PICTURES = 16
"""Feedback pictures in one forward pass whose activations are kept."""


class VisionLearner(Protocol):
    """What feedback needs of a learner, besides an encoder of its own."""

    @property
    def model(self) -> nn.Module:
        """All that trains."""
        ...

    @property
    def aligned(self) -> dict[str, nn.Parameter]:
        """The subset S, by name."""
        ...


@dataclass(frozen=True)
class HeadSettings:
    """How the heads follow the learner (G.2, part i).

    Args:
        steps: updates of every head before each meta step.
        batch_size: pictures a head sees in one update, at least 2 (it normalises over them).
        learning_rate: of their Adam.
    """

    steps: int = 4
    batch_size: int = 16
    learning_rate: float = 5e-3


class DenseFeedback(Feedback[VisionLearner]):
    """``g_down = sg(grad_S sum_task w_task loss_task)`` through light heads (G.2, eq. 7 and 51).

    Before each meta step the heads take some updates on the *train* part, on features without a
    graph; the gradient is then taken on the *meta* part, with the heads frozen. A head's batch
    normalisation uses its running statistics there: it is then the head that an evaluation would
    use, a fixed affine map, so that the loss is a sum over pictures (pieces give the gradient of
    the whole) and one picture's gradient does not depend on which others are in its batch
    (independent batches stay independent). Statistics of the batch would moreover hide every shift
    and scale of the features from the gradient.

    Labels appear nowhere else: the heads are no part of the learner, and its ``.grad`` is never
    touched.

    Args:
        train, meta: the two parts. They share no picture. Each task uses those that have a target
            for it, so that tasks may come from data sets of their own.
        tasks: each with its weight ``w_task`` > 0.
        width: D of the features.
        heads: see :class:`HeadSettings`.
        batch_size: pictures of each task in a meta batch.
        batches: meta batches used at a time, 2 or more, each from meta pictures of its
            own: their agreement is never that of one picture used twice.
        seed: of heads and batches; the global RNG is never used.
        device: of the heads; the learner's.
        encoder: what the features come from, given the learner.
        where: dotted recipe key of the feedback set, for messages.

    Raises:
        UserError: a part is empty or too small, a task has no target in it or ids that it does not
            have, or a picture is in both parts.
    """

    def __init__(
        self,
        train: Sequence[Picture],
        meta: Sequence[Picture],
        tasks: Mapping[DownstreamTask, float],
        *,
        width: int,
        heads: HeadSettings,
        batch_size: int,
        batches: int,
        seed: int,
        device: torch.device | str = "cpu",
        encoder: Callable[[Any], Encoder] = attrgetter("backbone"),
        where: str = "data.feedback",
    ) -> None:
        _check(train, meta, tasks, heads, needed=batch_size * batches, batches=batches, where=where)
        self.tasks, self.steps, self.encoder = dict(tasks), heads.steps, encoder
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.ModuleDict(
            {
                task.name: task.head(width, [p for p in train if task.has(p)], generator, 0.1)
                for task in tasks
            }
        ).to(device)
        self.heads.eval()
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=heads.learning_rate)
        self.train = [
            Pool(p, t, heads.batch_size, f"{seed} train {t[0].name}")
            for p, t in pooled(train, tasks)
        ]
        self.meta: list[list[Pool]] = [[] for _ in range(batches)]
        for members, together in pooled(meta, tasks):
            first = together[0].name
            order = random.Random(f"{seed} shares {first}").sample(
                members, len(members)
            )  # whatever order they came in
            for part, fraction in enumerate(self.meta):
                fraction.append(
                    Pool(order[part::batches], together, batch_size, f"{seed} meta {part} {first}")
                )

    def warm_up(self, learner: VisionLearner, steps: int) -> None:
        """Trains the heads on the train part's features, computed once where they fit in
        ``WARM_UP_BYTES``, so that ``g_down`` is not that of random heads.
        """
        encoder = self.encoder(learner)
        known = [freeze_within(encoder, pool.pictures, WARM_UP_BYTES) for pool in self.train]
        for _ in phase("feedback heads, steps of their warm-up", range(steps), steps):
            self._update(
                [
                    features.at(pool.draws.draw())
                    for features, pool in zip(known, self.train, strict=True)
                ]
            )

    def gradients(self, learner: VisionLearner) -> list[Gradient]:
        """``g_down`` over S, one a meta batch, summed in float32 or wider, after the heads'
        updates.

        The learner's parameters, their ``.grad``, its modules' modes and the global RNG are as
        before. Parameters of S that no task depends on get zeros.
        """
        for _ in range(self.steps):
            self._update([freeze(self.encoder(learner), pool.draw()) for pool in self.train])
        return [
            self._gradient(learner, [(pool.draw(), pool.tasks) for pool in fraction])
            for fraction in self.meta
        ]

    def held_out_loss(
        self, learner: VisionLearner, pictures: Sequence[Picture]
    ) -> Iterator[Tensor]:
        """``L_down`` of these pictures under the present heads, in pieces: scalars with their graph
        to the learner.

        Their sum is the loss: every task's mean over all the pictures that it has targets for,
        weighted. Nothing trains.
        """
        return self._pieces(self.encoder(learner), pooled(pictures, self.tasks))

    def state_dict(self) -> dict[str, Any]:
        drawn = [pool.draws.batch for pool in self._pools()]
        return {
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "drawn": drawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        for pool, drawn in zip(self._pools(), state["drawn"], strict=True):
            pool.draws.batch = drawn

    def _pools(self) -> list[Pool]:
        return [*self.train, *(pool for fraction in self.meta for pool in fraction)]

    @torch.enable_grad()
    def _update(self, batches: Sequence[Frozen]) -> None:
        """One step of every head, each pool's heads on its batch."""
        self.heads.train()
        self.optimizer.zero_grad(set_to_none=True)
        for pool, batch in zip(self.train, batches, strict=True):
            for task in pool.tasks:
                outputs = self.heads[task.name](batch.features, batch.pictures[0].size)
                mean_loss(task, outputs, task.targets(batch.pictures).to(outputs.device)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.heads.eval()

    def _gradient(self, learner: VisionLearner, batch: Sequence[Targeted]) -> Gradient:
        aligned = list(learner.aligned.values())
        total = {
            name: torch.zeros_like(vectors.wide(p.detach())) for name, p in learner.aligned.items()
        }
        members = {id(parameter) for parameter in aligned}
        # Nothing but S asks for gradients, so that the blocks below S keep no activations.
        with frozen(p for p in learner.model.parameters() if id(p) not in members):
            for piece in self._pieces(self.encoder(learner), batch):
                parts = torch.autograd.grad(
                    piece, aligned, allow_unused=True, materialize_grads=True
                )
                for summed, part in zip(total.values(), parts, strict=True):
                    summed += part
        return total

    def _pieces(self, encoder: Encoder, batch: Sequence[Targeted]) -> Iterator[Tensor]:
        """The weighted loss, a chunk of pictures at a time; each picture runs through the encoder
        once.
        """
        for pictures, tasks in batch:
            counts = [
                float(torch.stack([task.counts(task.targets([p])) for p in pictures]).sum())
                for task in tasks
            ]
            for start in range(0, len(pictures), CHUNK_PICTURES):
                chunk = pictures[start : start + CHUNK_PICTURES]
                with (
                    torch.enable_grad(),
                    evaluating(encoder.model),
                    frozen(self.heads.parameters()),
                ):
                    features = encoder.features(images_for(encoder, chunk))
                    losses = []
                    for task, count in zip(tasks, counts, strict=True):
                        outputs = self.heads[task.name](features, chunk[0].size)
                        total = task.losses(outputs, task.targets(chunk).to(outputs.device)).sum()
                        losses.append(total * (self.tasks[task] / count))
                    piece = torch.stack(losses).sum()
                yield piece  # outside of the block: the caller sees the modes that it set


def _check(
    train: Sequence[Picture],
    meta: Sequence[Picture],
    tasks: Mapping[DownstreamTask, float],
    heads: HeadSettings,
    *,
    needed: int,
    batches: int,
    where: str,
) -> None:
    problems: list[Problem] = []

    def refuse(key: str, value: object, accepted: str, message: str) -> None:
        problems.append(Problem(f"{where}.{key}", str(value), accepted, message))

    if (
        not tasks
        or any(weight <= 0 for weight in tasks.values())
        or len({task.name for task in tasks}) < len(tasks)
    ):
        shown = ", ".join(f"{task.name}: {weight}" for task, weight in tasks.items()) or "none"
        refuse(
            "tasks",
            shown,
            "one or more, of different names, each with a weight above 0",
            "these tasks give no loss",
        )
    if batches < 2:
        refuse(
            "batches",
            batches,
            "2 or more",
            "one batch alone cannot show how far feedback agrees with itself",
        )
    if heads.batch_size < 2:
        refuse(
            "heads.batch_size",
            heads.batch_size,
            "2 or more",
            "a head normalises over the pictures of its batch",
        )
    for key, pictures, least in (("train", train, 2), ("meta", meta, max(1, needed))):
        wrong = target_problems(list(tasks), pictures, f"{where}.{key}")
        problems += wrong
        for task in tasks:
            count = sum(task.has(picture) for picture in pictures)
            if not wrong and count < least:
                message = (
                    f"too few pictures for {task.name}; add some, or ask for fewer or "
                    "smaller batches"
                )
                refuse(key, f"{count} pictures", f"at least {least}", message)
    problems += _overlap(train, meta, where)
    if problems:
        raise UserError(*problems)


def _overlap(train: Sequence[Picture], meta: Sequence[Picture], where: str) -> list[Problem]:
    """Pictures of both parts, by name and by pixels (a copy under another name is the same
    picture).
    """
    names = {picture.name: picture.name for picture in train}
    known = names | {picture.identity: picture.name for picture in train}
    shared = {
        picture.name: known[key]
        for picture in meta
        for key in (picture.identity, picture.name)
        if key in known
    }
    if not shared:
        return []
    shown = abbreviated(
        (name if name == other else f"{name} (is {other})" for name, other in shared.items()),
        most=5,
    )
    message = (
        "pictures of the meta part are in the train part too, where the heads would know "
        "their labels; remove them"
    )
    return [Problem(f"{where}.meta", shown, "pictures that are not in the train part", message)]
