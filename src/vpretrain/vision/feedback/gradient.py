"""Feedback from labelled pictures: the gradient through heads trained on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from vpretrain.config.section import Section
from vpretrain.method.feedback import gradient_on_aligned
from vpretrain.method.roles import Feedback, Gradient
from vpretrain.system.contexts import evaluating, frozen
from vpretrain.system.errors import Problem, UserError, abbreviated
from vpretrain.system.phases import phase
from vpretrain.vision.data.images import Picture
from vpretrain.vision.data.picture_store import GIB
from vpretrain.vision.feedback.features import (
    Encoder,
    StoredFeatures,
    freeze,
    freeze_within,
    images_for,
)
from vpretrain.vision.feedback.pools import Pool, TaskGroup, split_evenly, task_groups
from vpretrain.vision.feedback.tasks import DownstreamTask, mean_loss, target_problems
from vpretrain.vision.role import AnyPictureLearner

WARM_UP_BYTES = 8 * GIB
"""Memory for the frozen patch features of one pool of pictures during the warm-up of heads."""
CHUNK_PICTURES = 16
"""Feedback pictures in one forward pass with gradients."""


class HeadSettings(Section):
    """The heads that predict labels from features (G.2, part i)."""

    steps: NonNegativeInt = 4
    """Updates of each head on frozen features before each meta step."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    learning_rate: PositiveFloat = 5e-3
    warmup_steps: NonNegativeInt = 200
    """Updates before the run starts."""
    blocks: PositiveInt = 1
    """The heads read the concatenated outputs of this many last blocks."""


class DenseFeedback(Feedback[AnyPictureLearner]):
    """``g_down = sg(grad_S sum_task w_task loss_task)`` through light heads (G.2, eq. 7 and 51).

    Before each meta step the heads are updated on the *train* part, on features without a graph;
    then the gradient is computed on the *meta* part, with the heads frozen. There, a head's batch
    normalisation uses its running statistics, a fixed affine map as in evaluation. Hence the loss
    is a sum over pictures, batches stay independent, and no shift or scale of the features is
    hidden from the gradient.

    Labels are used nowhere else; the heads are not part of the learner.

    Args:
        train, meta: the two parts, which share no picture. Each task uses the pictures that have a
            target for it, so that tasks can have different data sets.
        tasks: tasks with their weights ``w_task`` > 0.
        width: D of the features.
        heads: training of the heads; whoever calls reads its ``warmup_steps`` and ``blocks``.
        batch_size: pictures of each task in a meta batch.
        batches: meta batches per meta step, 2 or more, from disjoint parts of ``meta``.
        seed: seed of heads and batches; the global RNG is never used.
        encoder: returns the encoder of a learner.
        device: device of the heads; the learner's.
        where: dotted recipe key of the feedback set, for messages.

    Raises:
        UserError: a part is empty or too small, a task has no targets or invalid class ids in it,
            or a picture is in both parts.
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
        encoder: Callable[[Any], Encoder],
        device: torch.device | str = "cpu",
        where: str = "data.feedback",
    ) -> None:
        _check(train, meta, tasks, needed=batch_size * batches, batches=batches, where=where)
        self.tasks, self.steps, self.encoder = dict(tasks), heads.steps, encoder
        generator = torch.Generator().manual_seed(seed)
        known = {task: [picture for picture in train if task.has(picture)] for task in tasks}
        heads_of = {task.name: task.head(width, known[task], generator, 0.1) for task in tasks}
        self.heads = nn.ModuleDict(heads_of).to(device).eval()
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=heads.learning_rate)
        self.train = [
            Pool(p, t, heads.batch_size, f"{seed} train {t[0].name}")
            for p, t in task_groups(train, tasks)
        ]
        self.meta = [
            [
                Pool(p, t, batch_size, f"{seed} meta {part} {t[0].name}")
                for p, t in task_groups(members, tasks)
            ]
            for part, members in enumerate(split_evenly(meta, tasks, batches, f"{seed} shares"))
        ]

    def warm_up(self, learner: AnyPictureLearner, steps: int) -> None:
        """Train the heads on the train part, so that ``g_down`` is not that of random heads.

        Features are computed once if they fit in ``WARM_UP_BYTES``."""
        encoder = self.encoder(learner)
        known = [freeze_within(encoder, pool.pictures, WARM_UP_BYTES) for pool in self.train]
        for _ in phase("feedback heads, steps of their warm-up", range(steps), steps):
            pairs = zip(known, self.train, strict=True)
            self._update([features.at(pool.draws.draw()) for features, pool in pairs])

    def gradients(self, learner: AnyPictureLearner) -> list[Gradient]:
        """Update the heads and return ``g_down`` over S for each meta batch.

        Summed in float32 or wider; zero for a parameter of S that no task depends on. The learner
        is unchanged."""
        for _ in range(self.steps):
            self._update([freeze(self.encoder(learner), pool.draw()) for pool in self.train])
        batches = [[(pool.draw(), pool.tasks) for pool in pools] for pools in self.meta]
        encoder = self.encoder(learner)
        return [gradient_on_aligned(learner, self._pieces(encoder, batch)) for batch in batches]

    def held_out_loss(
        self, learner: AnyPictureLearner, pictures: Sequence[Picture]
    ) -> Iterator[Tensor]:
        """Yield ``L_down`` of pictures under the current heads in pieces.

        The pieces are scalars with their graph to the learner. Their sum is the weighted sum of the
        tasks' mean losses, each over the pictures that have targets for it."""
        return self._pieces(self.encoder(learner), task_groups(pictures, self.tasks))

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
        return [*self.train, *(pool for pools in self.meta for pool in pools)]

    @torch.enable_grad()
    def _update(self, batches: Sequence[StoredFeatures]) -> None:
        """Take one step of every head on its pool's batch."""
        self.heads.train()
        self.optimizer.zero_grad(set_to_none=True)
        for pool, batch in zip(self.train, batches, strict=True):
            for task in pool.tasks:
                outputs = self.heads[task.name](batch.features, batch.pictures[0].size)
                mean_loss(task, outputs, task.targets(batch.pictures).to(outputs.device)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.heads.eval()

    def _pieces(self, encoder: Encoder, batch: Sequence[TaskGroup]) -> Iterator[Tensor]:
        """Yield the weighted loss in chunks of pictures.

        A picture runs through the encoder once per group of tasks that share their pictures."""
        for pictures, tasks in batch:
            counts = [
                float(torch.stack([task.counts(task.targets([p])) for p in pictures]).sum())
                for task in tasks
            ]
            for start in range(0, len(pictures), CHUNK_PICTURES):
                chunk = pictures[start : start + CHUNK_PICTURES]
                heads = self.heads.parameters()
                with torch.enable_grad(), evaluating(encoder.model), frozen(heads):
                    features = encoder.features(images_for(encoder, chunk))
                    losses = []
                    for task, count in zip(tasks, counts, strict=True):
                        outputs = self.heads[task.name](features, chunk[0].size)
                        total = task.losses(outputs, task.targets(chunk).to(outputs.device)).sum()
                        losses.append(total * (self.tasks[task] / count))
                    piece = torch.stack(losses).sum()
                yield piece  # outside the with block, so that the caller's modes are restored


def _check(
    train: Sequence[Picture],
    meta: Sequence[Picture],
    tasks: Mapping[DownstreamTask, float],
    *,
    needed: int,
    batches: int,
    where: str,
) -> None:
    problems: list[Problem] = []

    def refuse(key: str, value: object, accepted: str, message: str) -> None:
        problems.append(Problem(f"{where}.{key}", str(value), accepted, message))

    names = {task.name for task in tasks}
    if not tasks or len(names) < len(tasks) or any(weight <= 0 for weight in tasks.values()):
        shown = ", ".join(f"{task.name}: {weight}" for task, weight in tasks.items()) or "none"
        accepted = "one or more, of different names, each with a weight above 0"
        refuse("tasks", shown, accepted, "these tasks give no loss")
    if batches < 2:
        message = "one batch alone cannot show how far feedback agrees with itself"
        refuse("batches", batches, "2 or more", message)
    for key, pictures, least in (("train", train, 2), ("meta", meta, max(1, needed))):
        wrong = target_problems(list(tasks), pictures, f"{where}.{key}")
        problems += wrong
        for task in tasks:
            count = sum(task.has(picture) for picture in pictures)
            if not wrong and count < least:
                message = (
                    f"too few pictures for {task.name}; add some, or ask for fewer or smaller "
                    "batches"
                )
                refuse(key, f"{count} pictures", f"at least {least}", message)
    problems += _overlap(train, meta, where)
    if problems:
        raise UserError(*problems)


def _overlap(train: Sequence[Picture], meta: Sequence[Picture], where: str) -> list[Problem]:
    """Return a problem if the two parts share pictures, by name or by pixels."""
    names = {picture.name: picture.name for picture in train}
    known = names | {picture.identity: picture.name for picture in train}
    keys = [(picture.name, key) for picture in meta for key in (picture.identity, picture.name)]
    shared = {name: known[key] for name, key in keys if key in known}
    if not shared:
        return []
    pairs = (name if name == other else f"{name} (is {other})" for name, other in shared.items())
    shown = abbreviated(pairs, most=5)
    message = (
        "pictures of the meta part are in the train part too, where the heads would know their "
        "labels; remove them"
    )
    return [Problem(f"{where}.meta", shown, "pictures that are not in the train part", message)]
