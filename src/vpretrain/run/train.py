"""One run: set-up, and one visible loop over Algorithm 1."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch

from vpretrain.config.recipe import Recipe
from vpretrain.method.accumulation import MicroBatches, Prefetcher, next_batches
from vpretrain.method.collapse import Collapse
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.roles import Parts, Score
from vpretrain.method.step import Guard, SteeredStep
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.run.budget import Clock, Spending
from vpretrain.run.checkpoint import CheckpointManager, State, measured
from vpretrain.run.flops import Cost
from vpretrain.run.state import Progress
from vpretrain.system import distributed, sharding
from vpretrain.system.errors import Fault, NonFinite, Stopped
from vpretrain.system.signals import Interruption

Record = dict[str, Any]


@dataclass
class Result:
    """What a run came to.

    Args:
        arm: of the recipe.
        seed: of the recipe.
        spent: steps, tokens (images) and seconds of training; evaluation is not charged.
        step0: scores of the untouched checkpoint, same protocol.
        final: scores at the end.
        stream_digest: digest over all batches drawn: equal in arms that saw the same stream.
        history: one record a step (and a skipped batch), since the start or since the run was
            resumed.
    """

    arm: str
    seed: int
    spent: Spending
    step0: dict[str, Score]
    final: dict[str, Score]
    stream_digest: str
    history: list[Record] = field(repr=False, default_factory=list)


def seed_everything(recipe: Recipe) -> None:
    """Seeds Python, NumPy and torch, and sets the number of CPU threads if the recipe gives one.

    Each process has a seed of its own (dropout is drawn from it); the first has the one of a
    process that is alone.
    """
    seed = recipe.seed + distributed.rank() * 2**16
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)


def new_step(recipe: Recipe, parts: Parts) -> SteeredStep:
    """Algorithm 1 for these parts, with a fresh AdamW."""
    section, value = recipe.learner, recipe.value
    if section.shard:
        sharding.shard_blocks(parts.learner)
    trainable = [p for p in parts.learner.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=section.learning_rate,
        betas=section.betas,
        weight_decay=section.weight_decay,
        # One pass over all parameters: a tenth of the time. Its lists of tensors would have to be
        # all shards or all whole.
        fused=not section.shard,
        foreach=False if section.shard else None,
    )
    return SteeredStep(
        parts.learner,
        parts.designer,
        parts.feedback,
        ValueEstimator(
            parts.learner, Alignment(value.alignment, value.smoothness), ESTIMATORS[value.estimator]
        ),
        optimizer,
        meta_period=value.meta_period,
        preconditioner_floor=value.preconditioner_floor,
        clip_norm=section.clip_norm,
        guard=Guard(value.guard_window),
        collapse=Collapse(value.guard_window, getattr(parts.designer, "bounds", None)),
        revert=value.on_collapse == "revert",
    )


def learning_rate(recipe: Recipe, fraction: float) -> float:
    """Linear warm-up, then a cosine to ``final_fraction`` of the peak, at ``fraction`` in [0, 1] of
    the budget.
    """
    section = recipe.learner
    if fraction < section.warmup_fraction:
        return section.learning_rate * fraction / section.warmup_fraction
    rest = (fraction - section.warmup_fraction) / max(1e-12, 1 - section.warmup_fraction)
    low = section.final_fraction
    return section.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * rest)) / 2)


def run(
    recipe: Recipe,
    parts: Parts,
    *,
    step0: dict[str, Score] | None = None,
    cost: Cost | None = None,
    each_step: Callable[[Record, float], None] = lambda record, fraction: None,
    checkpoints: CheckpointManager | None = None,
    resume: State | None = None,
    asked: Interruption | None = None,
    remember: bool = True,
    ahead: bool | None = None,
) -> Result:
    """Trains until the budget is used up.

    Args:
        recipe: every value of the run.
        parts: freshly built from it.
        step0: scores of the untouched checkpoint, if they were measured already.
        cost: FLOPs by kind of step (:func:`vpretrain.run.flops.count`); None leaves FLOPs uncounted
            (0).
        each_step: is given every step's record and the share of the budget that is used.
        checkpoints: writes checkpoints when they are due, and at the end; None keeps none.
        resume: a checkpoint's state to go on from; None starts.
        asked: signals that were heard; None heeds none.
        remember: whether the result holds the history; a long run has it in its log and not in
            memory.
        ahead: whether a thread draws the next batches while a step runs; the run is the same. None:
            where there is an accelerator, beside which the CPU has nothing to do.

    Raises:
        UserError: ``checkpoint.keep_best`` names what is not measured.
        Fault: losses, gradients or values that are not finite, more of them in a row than
            ``faults.max_skips`` (and, where there is a checkpoint, once more after it went back
            there); or a final score that is not finite.
        Stopped: a signal asked for it; the checkpoint is written.
    """
    if cost is None and recipe.budget.flops is not None:
        raise ValueError("a budget in FLOPs needs the cost of a step: vpretrain.run.flops.count")
    cost = cost or {}
    # All start from the first process's state: kernels may round differently between ranks.
    held = [
        dict(parts.learner.model.state_dict()),
        parts.learner.state_dict(),
        parts.designer.state_dict(),
    ]
    distributed.broadcast(list(distributed.tensors_in(held)))
    accumulate, stream = recipe.learner.accumulate, None
    if torch.cuda.is_available() if ahead is None else ahead:
        stream = Prefetcher(parts.stream, accumulate)
        parts = replace(parts, stream=stream)
    step = new_step(recipe, parts)
    progress = Progress(parts, step)
    spent = progress.spent
    clock = Clock(spent)
    history: list[Record] = []

    skipped, went_back = 0, False

    def log(record: Record) -> None:
        progress.records += 1
        if remember:
            history.append(record)
        each_step(record, spent.fraction(recipe.budget))

    def attempt(rate: float, fraction: float = 0.0) -> tuple[MicroBatches, Record] | None:
        """A step on the next batch, or None where that had to be left out."""
        nonlocal skipped, went_back
        try:
            with clock:
                started = time.perf_counter()
                batch = next_batches(parts.stream, accumulate) if stream is None else next(stream)
                metrics: Record = {"seconds_data": time.perf_counter() - started}
                spent.add(flops=cost.get(step.meta_due, 0.0))
                metrics |= step(batch, rate, fraction)
                metrics["tokens_per_second"] = batch.tokens / (time.perf_counter() - started)
        except NonFinite as fault:
            skipped += 1
            log({"step": spent.steps, "skipped": str(fault), "batch": batch.digest()})
            if skipped > recipe.faults.max_skips:
                earlier = None if checkpoints is None or went_back else checkpoints.newest()
                if earlier is None:
                    raise Fault(f"{fault}; {skipped} batches in a row") from fault
                progress.rewind(earlier[1])
                skipped, went_back = 0, True
            return None
        skipped = 0
        return batch, metrics

    if resume is not None:
        seed_everything(recipe)
        progress.load_state_dict(resume)
    else:
        progress.step0 = step0 if step0 is not None else parts.evaluate()
        if checkpoints is not None and recipe.checkpoint.keep_best is not None and progress.step0:
            measured(
                recipe.checkpoint.keep_best, progress.step0
            )  # now, and not hours later at the first evaluation
        seed_everything(recipe)
        # Burn-in: at learning rate 0 the learner stays where it is, bit for bit, while AdamW's
        # moments (which P reads), the designer and its reliability settle. Every arm goes through
        # it, so that every arm starts from the same optimizer.
        for _ in range(recipe.value.burn_in_steps if parts.on_stream else 0):
            attempt(0.0)
        step.count = 0

    while True:
        # Clocks differ, and all processes end at the same step.
        spent.seconds = distributed.broadcast_object(spent.seconds)
        if not parts.on_stream or spent.exhausted(recipe.budget):
            break
        fraction = spent.fraction(recipe.budget)
        taken = attempt(learning_rate(recipe, fraction), fraction)
        if taken is None:
            continue
        batch, metrics = taken
        spent.add(steps=1, tokens=batch.tokens)
        used = spent.state_dict()
        record: Record = {"step": used.pop("steps"), **used, **metrics}
        record["batch"] = batch.digest()  # equal steps of a seed show equal batches in every arm
        progress.saw(record["batch"])
        if recipe.evaluate.every and spent.steps % recipe.evaluate.every == 0:
            scores = parts.evaluate()
            record |= {name: score.value for name, score in scores.items()}
            if checkpoints is not None and recipe.checkpoint.keep_best is not None:
                with sharding.whole(parts.learner.model):
                    progress.best = checkpoints.keep_best(
                        recipe.checkpoint.keep_best, scores, progress.best, parts.save
                    )
        log(record)
        due = checkpoints is not None and distributed.rank() == 0 and checkpoints.due(spent.steps)
        due, stop = distributed.any_rank(due, asked is not None and asked.by is not None)
        if checkpoints is not None and (due or stop):
            checkpoints.save(spent.steps, progress.state_dict())
        if stop and not distributed.broadcast_object(spent.exhausted(recipe.budget)):
            if checkpoints is not None:
                checkpoints.wait()
            by = (asked.by if asked is not None else None) or "a signal to another process"
            raise Stopped(f"{by} after step {spent.steps}; the same command goes on from there")

    if stream is not None:
        stream.close()
    if checkpoints is not None and distributed.broadcast_object(
        spent.steps not in checkpoints.steps()
    ):
        checkpoints.save(spent.steps, progress.state_dict())
    if parts.after is not None:
        with clock:
            parts.after(spent)
    final = parts.evaluate()
    if broken := [name for name, score in final.items() if not math.isfinite(score.value)]:
        raise Fault(
            f"after {spent.steps} steps {', '.join(broken)} is not finite; lower "
            "learner.learning_rate"
        )
    return Result(recipe.arm, recipe.seed, spent, progress.step0, final, progress.digest, history)
