"""The parts of the training loop in :mod:`vpretrain.run.train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from vpretrain.config.recipe import Recipe
from vpretrain.method.accumulation import MicroBatches, next_batches
from vpretrain.method.roles import Metrics
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.checkpoint import CheckpointManager, measured
from vpretrain.run.encoding import State
from vpretrain.run.flops import Cost
from vpretrain.run.parts import AnyParts
from vpretrain.run.prefetch import Prefetcher
from vpretrain.run.schedule import learning_rate
from vpretrain.run.scores import STEP0_FIX, Score, check_finite
from vpretrain.run.state import RunState
from vpretrain.system import distributed, sharding
from vpretrain.system.errors import Fault, NonFinite, Stopped, UserError, brief, user_error
from vpretrain.system.memory import out_of_memory
from vpretrain.system.phases import phase
from vpretrain.system.signals import Interruption

Record = dict[str, Any]
"""One line of ``metrics.jsonl``."""
OnRecord = Callable[[Record, float], bool | None]
"""Called with a record and the used fraction of the budget; returns False if the record could not
be written, so that it is not counted among those that a resumed run keeps."""
Batches = MicroBatches[Any]


class Run:
    """One run.

    Args:
        recipe: every value of the run.
        parts: freshly built from the recipe.
        step0: scores of the untouched checkpoint, if already measured; with ``resume`` they replace
            those of the resumed run.
        cost: FLOPs by kind of step (:func:`vpretrain.run.flops.count`); None counts none (0).
        on_record: called with every record, see :data:`OnRecord`.
        checkpoints: writes checkpoints when they are due, and at the end; None writes none.
        resume: the state of the checkpoint to resume from; None starts anew. The reference is
            dropped after loading, because the state may be as large as the model with its
            optimizer.
        stop: the signals received so far; None: they are ignored.
        keep_history: whether :attr:`history` is filled; long runs have it in their log instead.
        prefetch: whether a thread draws the next batches during a step, which saves time beside an
            accelerator and does not change the results.

    Attributes:
        state: the mutable state.
        history: the records, in memory.
    """

    def __init__(
        self,
        recipe: Recipe,
        parts: AnyParts,
        *,
        step0: dict[str, Score] | None = None,
        cost: Cost | None = None,
        on_record: OnRecord = lambda record, fraction: None,
        checkpoints: CheckpointManager | None = None,
        resume: State | None = None,
        stop: Interruption | None = None,
        keep_history: bool = True,
        prefetch: bool = False,
    ) -> None:
        if cost is None and recipe.budget.flops is not None:
            raise ValueError(
                "a budget in FLOPs needs the cost of a step: vpretrain.run.flops.count"
            )
        self.recipe, self.cost, self.stop = recipe, cost or Cost(), stop
        self.checkpoints, self.resume, self.measured_step0 = checkpoints, resume, step0
        self.on_record, self.keep_history = on_record, keep_history
        self.history: list[Record] = []
        # All start from the first process's state: kernels may round differently between ranks.
        states = [parts.learner.state_dict(), parts.designer.state_dict()]
        states.append(dict(parts.learner.model.state_dict()))
        distributed.broadcast(list(distributed.tensors_in(states)))
        self.waited_seconds = 0.0
        self.batches: Iterator[Batches] | None = None
        if prefetch:
            self.batches = Prefetcher(
                parts.stream, recipe.learner.accumulate * parts.designer.draws
            )
            parts = replace(parts, stream=self.batches)
        self.parts, self.step_once = parts, new_step(recipe, parts)
        self.state = RunState(parts, self.step_once)
        self.skipped_in_a_row = 0
        self.prepared: Metrics = {}
        self.resumed = False

    # ---- start

    def start(self) -> None:
        """Resumes from a checkpoint; or evaluates step 0 and lets AdamW's moments settle.

        Settling is ``value.settle_steps`` steps at learning rate 0: the learner does not change,
        while the moments (which ``P`` reads), the designer and its reliability adapt. Every arm
        does it, so that all start from the same optimizer state.

        Raises:
            UserError: the budget is used up before the first step, or see :meth:`go_on`.
            Fault: a score of step 0 is not finite.
            Stopped: a signal was received; there is nothing to save yet.
        """
        parts, keep_best = self.parts, self.recipe.checkpoint.keep_best
        if self.go_on():
            return
        step0 = self.measured_step0
        self.state.step0 = parts.evaluate() if step0 is None else step0
        self._end_if_stopped()
        check_finite(self.state.step0, "before the first step", STEP0_FIX)
        if self.checkpoints is not None and keep_best is not None and self.state.step0:
            measured(keep_best, self.state.step0)  # now, and not hours later
        self.prepared = self._prepare()
        self._end_if_stopped()
        if self.prepared and self.agree_on_end():
            raise self._used_up("what the arm trains beforehand", "let it train on less")
        seed_run(self.recipe)
        steps = self.recipe.value.settle_steps if parts.on_stream else 0
        for settled in phase("settling at learning rate 0, steps", range(steps), steps):
            if self.agree_on_end():
                raise self._used_up(*self._settling(settled))
            batch = self.next_batch()
            try:
                self._step(batch, 0.0, 0.0)
            except NonFinite as fault:
                self.recover(batch, fault)
            self._end_if_stopped()
        self.step_once.count = 0
        if parts.on_stream and self.agree_on_end():
            raise self._used_up(*self._settling(self.recipe.value.settle_steps))
        self.state.prepared = replace(self.state.spent)

    def _end_if_stopped(self) -> None:
        """Raises Stopped if any process received a signal before the first step."""
        (stopping,) = distributed.any_rank(self.stop is not None and self.stop.by is not None)
        if stopping:
            raise Stopped(self._stopped_by, "step 0")

    @property
    def _stopped_by(self) -> str:
        return (self.stop and self.stop.by) or "a signal to another process"

    def go_on(self) -> bool:
        """Loads the checkpoint to resume from, on the first call; returns whether there is one.

        Raises:
            UserError: the checkpoint does not fit the recipe or the data.
        """
        if self.resume is not None:
            seed_run(self.recipe)
            self._go_on_from(self.resume)
            if self.measured_step0:
                self.state.step0, self.state.best = self.measured_step0, None
            self.resume, self.resumed = None, True
        return self.resumed

    def _go_on_from(self, state: State) -> None:
        try:
            self.state.load_state_dict(state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            if out_of_memory(error):
                raise
            message = (
                f"the newest checkpoint is not of a run of this recipe ({type(error).__name__}: "
                f"{brief(error)}); remove it to go on from the one before, or name another folder"
            )
            raise user_error("--out", message) from error

    def _prepare(self) -> Metrics:
        """Prepares feedback and designer; the seconds, and the designer's tokens and FLOPs, are
        charged to the budget and returned for the first record."""
        with self.state.spent.timing():
            started = time.perf_counter()
            if self.parts.designer.uses_feedback:
                self.parts.feedback.prepare(self.parts.learner)
            prepared = self.parts.designer.prepare()
            seconds = time.perf_counter() - started
        self.state.spent.add(tokens=prepared.tokens, flops=prepared.flops)
        if not prepared.metrics:
            return {}
        used = {"tokens": float(prepared.tokens), "flops": prepared.flops, "seconds": seconds}
        return {**{f"prepared_{name}": figure for name, figure in used.items()}, **prepared.metrics}

    def _settling(self, settled: int) -> tuple[str, str]:
        steps = f"{settled} of {self.recipe.value.settle_steps} steps of value.settle_steps"
        return f"settling, at {steps},", "settle for fewer steps"

    def _used_up(self, what: str, fix: str) -> UserError:
        """Returns the error for a budget that leaves nothing for the first step."""
        budget, used = self.recipe.budget, self.state.spent.state_dict()
        limits = {name: limit for name, limit in budget if limit is not None}
        name, limit = next((n, limit) for n, limit in limits.items() if used[n] >= limit)
        message = f"{what} used it up before the first step; give more, or {fix}"
        return user_error(
            f"budget.{name}", message, value=limit, accepted=f"more than {used[name]}"
        )

    # ---- one iteration of the loop

    def agree_on_end(self) -> bool:
        """Returns whether the budget is used up; a collective call.

        All processes take the seconds of the first one, since their clocks differ.
        """
        spent = self.state.spent
        spent.seconds = distributed.broadcast_object(spent.seconds)
        return not self.parts.on_stream or spent.exhausted(self.recipe.budget)

    @property
    def progress(self) -> float:
        """The used fraction of the budget, in [0, 1]."""
        return self.state.spent.fraction(self.recipe.budget)

    def next_batch(self) -> Batches:
        """Returns the next step's batches; the time to draw them is charged to the budget."""
        with self.state.spent.timing():
            started = time.perf_counter()
            if self.batches is not None:
                batch = next(self.batches)
            else:
                count = self.recipe.learner.accumulate * self.parts.designer.draws
                batch = next_batches(self.parts.stream, count)
            self.waited_seconds = time.perf_counter() - started
        return batch

    def step(self, drawn: Batches) -> Metrics:
        """Takes one learner step and returns its metrics; see :meth:`take`."""
        return self.take(drawn)[1]

    def take(self, drawn: Batches) -> tuple[Batches, Metrics]:
        """Takes one learner step at the schedule's learning rate.

        The schedule covers the part of the budget that was left at the first step, after settling
        and the arm's own preparation. All processes use the same rate.

        Returns:
            The batches that were trained on (with a selector a part of ``drawn``), and the metrics.

        Raises:
            NonFinite: the step was not taken.
        """
        spent, budget = self.state.spent, self.recipe.budget
        if budget.seconds is not None:  # each process waited for its batch by its own clock
            spent.seconds = distributed.broadcast_object(spent.seconds)
        progress = spent.fraction(budget, since=self.state.prepared)
        return self._step(drawn, learning_rate(self.recipe.learner, progress), progress)

    def _step(self, drawn: Batches, rate: float, progress: float) -> tuple[Batches, Metrics]:
        step = self.step_once
        with self.state.spent.timing():
            started = time.perf_counter()
            due, steers = step.meta.due(step.count), step.meta.steers(step.count)
            self.state.spent.add(flops=self.cost.of(meta_due=due, steers=steers))
            batch, metrics = step.take(drawn, rate, progress)
            self.skipped_in_a_row = 0
            seconds = self.waited_seconds + time.perf_counter() - started
        metrics = {"seconds_data": self.waited_seconds} | metrics
        return batch, metrics | {"tokens_per_second": batch.tokens / seconds}

    def recover(self, batch: Batches, fault: NonFinite) -> None:
        """Skips a batch; after too many in a row, returns to the last checkpoint, once per run.

        Raises:
            Fault: there is no checkpoint, or the run has returned to one before.
        """
        self.skipped_in_a_row += 1
        spent = self.state.spent
        self._log({"step": spent.steps, "skipped": str(fault), "batch": batch.digest()})
        if self.skipped_in_a_row <= self.recipe.faults.max_skips:
            return
        checkpoints = None if self.state.rewound else self.checkpoints
        earlier = None if checkpoints is None else checkpoints.newest()
        if earlier is None:
            raise Fault(f"{fault}; {self.skipped_in_a_row} batches in a row") from fault
        self.state.rewind(earlier[1])
        self.skipped_in_a_row = 0

    def advance(self, batch: Batches, drawn: Batches | None = None) -> None:
        """Counts a step on ``batch``, and ``drawn``, the batches drawn for it (None: the same)."""
        drawn = batch if drawn is None else drawn
        self.state.spent.add(steps=1, tokens=batch.tokens)
        self.state.drawn += drawn.tokens
        self.state.add_digest(drawn.digest())

    def evaluate_if_due(self) -> Metrics:
        """Evaluates if it is due, and saves the best model so far; returns scores by name."""
        every, keep_best = self.recipe.evaluate.every, self.recipe.checkpoint.keep_best
        if not every or self.state.spent.steps % every:
            return {}
        scores = self.parts.evaluate()
        if self.checkpoints is not None and keep_best is not None:
            if self.state.best_metric not in (None, keep_best):
                self.state.best = None  # of another metric, before the run was resumed
            self.state.best_metric = keep_best
            with sharding.whole(self.parts.learner.model):
                self.state.best = self.checkpoints.keep_best(
                    keep_best, scores, self.state.best, self.parts.save
                )
        return {name: score.value for name, score in scores.items()}

    def record(self, batch: Batches, metrics: Metrics) -> None:
        """Logs a step with the digest of the batches drawn for it, which is the same at the same
        step of a seed in all arms that draw equally many."""
        spent = self.state.spent.state_dict()
        record: Record = {"step": spent.pop("steps"), **spent, **metrics, **self.prepared}
        self.prepared = {}
        if self.parts.designer.selector is not None:
            record["drawn"] = self.state.drawn
        self._log(record | {"batch": batch.digest()})

    def _log(self, record: Record) -> None:
        if self.keep_history:
            self.history.append(record)
        if self.on_record(record, self.progress) is not False:
            self.state.records += 1

    def checkpoint_if_due(self) -> None:
        """Writes a checkpoint if one is due or a signal was received.

        Raises:
            Stopped: a signal was received, and the budget is not used up.
            Fault: a signal was received, and the checkpoint could not be written.
        """
        checkpoints, steps = self.checkpoints, self.state.spent.steps
        due = checkpoints is not None and distributed.rank() == 0 and checkpoints.due(steps)
        asked = self.stop is not None and self.stop.by is not None
        due, stopping = distributed.any_rank(due, asked)
        if checkpoints is not None and (due or stopping):
            checkpoints.save(steps, self.state.state_dict())
        exhausted = self.state.spent.exhausted(self.recipe.budget)
        if stopping and not distributed.broadcast_object(exhausted):
            if checkpoints is not None:
                checkpoints.wait()
                self._check_written(steps)
            raise Stopped(self._stopped_by, f"step {steps}")

    def _check_written(self, steps: int) -> None:
        """Raises Fault if the checkpoint after a signal was not written: Stopped promises that the
        run can be resumed from this step."""
        assert self.checkpoints is not None
        there, failure = distributed.broadcast_object(
            (self.checkpoints.steps(), self.checkpoints.failure)
        )
        if steps not in there:
            where = f"step {there[-1]}" if there else "the beginning"
            message = f"no checkpoint could be written at step {steps}: {failure}; make room, and"
            raise Fault(f"{message} the same command goes on from {where}")

    # ---- end

    def finish(self) -> dict[str, Score]:
        """Writes the last checkpoint, runs the arm's stages after the stream, and returns the final
        scores.

        Raises:
            Fault: a score is not finite.
        """
        spent, checkpoints = self.state.spent, self.checkpoints
        if isinstance(self.batches, Prefetcher):
            self.batches.close()
        if checkpoints is not None and distributed.broadcast_object(
            spent.steps not in checkpoints.steps()
        ):
            checkpoints.save(spent.steps, self.state.state_dict())
        if self.parts.after is not None:
            with self.state.spent.timing():
                self.parts.after(spent)
        final = self.parts.evaluate()
        check_finite(final, f"after {spent.steps} steps", "lower learner.learning_rate")
        return final
