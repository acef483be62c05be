"""Builds Algorithm 1 from a recipe and its parts."""

from __future__ import annotations

from typing import Any

import torch

from vpretrain.config.recipe import Recipe, Value
from vpretrain.method.estimators import estimator
from vpretrain.method.guards import Collapse, Guard
from vpretrain.method.meta_step import MetaStep
from vpretrain.method.roles import BatchT, ContextT, Designer, Feedback, Learner, Stream, TaskT
from vpretrain.method.step import SteeredStep
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.run.parts import AnyParts
from vpretrain.system import sharding
from vpretrain.system.errors import user_error
from vpretrain.system.random_streams import seed_everything


def seed_run(recipe: Recipe) -> None:
    """Seeds all random number generators, and sets the recipe's number of CPU threads if given."""
    seed_everything(recipe.seed)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)


def new_step(recipe: Recipe, parts: AnyParts) -> SteeredStep[Any, Any, Any]:
    """Returns Algorithm 1 for these parts, with a fresh AdamW."""
    learner, section = parts.learner, recipe.learner
    if section.shard:
        if learner.state_dict():
            message = "a learner that keeps a moving average of its model cannot be sharded"
            raise user_error("learner.shard", message, value=True, accepted="false")
        sharding.shard_blocks(learner.model, learner.aligned)
    optimizer = torch.optim.AdamW(
        [p for p in learner.model.parameters() if p.requires_grad],
        lr=section.learning_rate,
        betas=section.betas,
        weight_decay=section.weight_decay,
        # The fused kernel takes a tenth of the time, but cannot mix sharded and whole tensors.
        fused=not section.shard,
        foreach=False if section.shard else None,
    )
    meta = new_meta_step(
        recipe.value,
        learner,
        parts.designer,
        parts.feedback,
        optimizer,
        groups=parts.alignment_groups,
        batches=parts.meta_batches,
    )
    return SteeredStep(learner, meta, optimizer, clip_norm=section.clip_norm)


def new_meta_step(
    value: Value,
    learner: Learner[BatchT, ContextT, TaskT],
    designer: Designer[ContextT, TaskT],
    feedback: Feedback[Any],
    optimizer: torch.optim.Optimizer,
    *,
    groups: tuple[str, ...] = (),
    batches: Stream[BatchT] | None = None,
) -> MetaStep[BatchT, ContextT, TaskT]:
    """Returns the designer's side of Algorithm 1.

    Args:
        value: alignment, estimator, meta period and guard.
        learner: the learner to steer.
        designer: the arm's designer.
        feedback: the feedback that the designer learns from.
        optimizer: the learner's.
        groups: see :class:`vpretrain.method.value.Alignment`.
        batches: separate unlabeled batches for the designer; None: it learns from the learner's.
    """
    alignment = Alignment.of(designer, value.alignment, value.smoothness, groups)
    return MetaStep(
        learner,
        designer,
        feedback,
        ValueEstimator(learner, alignment, estimator(value.estimator)),
        optimizer,
        period=value.meta_period,
        start=value.start_step,
        preconditioner_floor=value.preconditioner_floor,
        guard=Guard(value.guard_window),
        collapse=Collapse(value.guard_window, designer.bounds),
        revert=value.on_collapse == "revert",
        batches=batches,
    )
