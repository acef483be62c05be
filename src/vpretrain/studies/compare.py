"""Compares arms from the same checkpoint on the same stream, with paired seeds.

The table begins with step 0.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from vpretrain.config import recipe as recipes
from vpretrain.config.changes import changes
from vpretrain.config.recipe import Budget, Measure, Recipe
from vpretrain.run.build import new_step
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.flops import Cost, rehearse
from vpretrain.run.folder import (
    PICTURES,
    accepted_changes,
    changed_data,
    drawing,
    environment,
    refuse_other_scores,
    write_environment,
)
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import AnyParts
from vpretrain.run.records import Records
from vpretrain.run.resources import disk_shortage
from vpretrain.run.run import Record, Run
from vpretrain.run.scores import STEP0_FIX, check_finite
from vpretrain.run.train import Result, train
from vpretrain.studies.run_files import (
    Pair,
    as_json,
    checkpoints_path,
    entry_path,
    read_entry,
    read_result,
    scores_of_step0,
    write_entry,
)
from vpretrain.studies.verdicts import judged
from vpretrain.system.errors import Fault, UserError, user_error
from vpretrain.system.files import remove, write_json, write_text
from vpretrain.system.lock import writing
from vpretrain.system.processes import in_processes
from vpretrain.system.signals import Interruption
from vpretrain.system.timing import Pace


def with_budget(recipe: Recipe, match: Measure, amount: float) -> Recipe:
    """Returns the recipe with a single limit, so that every arm ends by the same measure."""
    if amount <= 0:
        raise user_error(
            "--budget", "a run needs something to use up", value=amount, accepted="more than 0"
        )
    limit: dict[str, Any] = {match: round(amount) if match in ("steps", "tokens") else amount}
    return recipe.model_copy(update={"budget": Budget(**limit)})


_MOST_SEEDS = 10_000

Progress = Callable[[int, int, str, float], None]
"""Called with the number of finished runs, the number of runs, a status line, and the sum of the
fractions completed by the runs in progress.
"""


def check_arms(recipe: Recipe, arms: Sequence[str]) -> None:
    """Rejects an empty list, unknown arms, and arms given twice."""
    known = MODALITIES[recipe.modality]().arms
    accepted = "distinct ones of " + ", ".join(known)
    if not arms:
        message = "name arms, with commas between them; the others are compared with the first"
        raise user_error("--arms", message, accepted=accepted)
    for arm in arms:
        if arm not in known or arms.count(arm) > 1:
            problem = "is given twice" if arm in known else f"is not an arm of {recipe.modality}"
            message = f"{arm} {problem}"
            raise user_error("--arms", message, value=",".join(arms), accepted=accepted)


def compare(
    recipe: Recipe,
    *,
    arms: Sequence[str],
    seeds: int,
    match: Measure,
    out: Path,
    jobs: int = 1,
    accept_changes: bool = False,
    progress: Progress = lambda done, total, what, underway: None,
) -> dict[str, Any]:
    """Runs every arm with every seed and writes ``compare.json``; finished runs are kept.

    Args:
        recipe: with the budget of one run; its own arm and seed are ignored.
        arms: the first is the baseline.
        seeds: number of seeds, from the recipe's up; all arms of a seed see the same stream.
        match: the measure of the budget (what is equal across arms).
        out: folder for ``compare.json`` and ``runs/``.
        jobs: number of runs at a time, each in its own process; more than one distorts timings.
        accept_changes: continue although recipe or data differ from those of ``out``; the result
            lists the differences as ``changes: [{what, before, now}]``.
        progress: see :data:`Progress`; step 0 does not count as a run.

    Returns:
        The contents of ``compare.json`` (docs: outputs).

    Raises:
        UserError: arms or numbers are invalid, ``out`` holds runs of another recipe or other data
            or a damaged result, or another command is writing there.
    """
    check_arms(recipe, arms)
    _check_seeds(seeds)
    resolved = recipe.model_copy(update={"arm": arms[0]})
    changed = changes(out, resolved, _FIX)
    accepted_changes(out, changed, accept=accept_changes)  # refused before anything is read
    # All arms of a seed before the next seed, so that an interrupted comparison has whole pairs.
    plan = [(arm, recipe.seed + k) for k in range(seeds) for arm in arms]
    finished = {
        pair: read_entry(path, pair) for pair in plan if (path := entry_path(out, *pair)).is_file()
    }
    total = len(plan)
    progress(len(finished), total, "reading data", 0.0)
    worker = _Worker(recipe, out)
    hashes = worker.modality.data_hashes(worker.materials)
    changed += changed_data(out, hashes)
    noted = accepted_changes(out, changed, accept=accept_changes)
    refuse_other_scores(out / "runs" / "step0.json", changed)
    with writing(out):
        progress(len(finished), total, "measuring the model before training (step 0)", 0.0)
        step0 = worker.step0(arms[0])
        # Written only after data and model were validated.
        write_text(out / "recipe.yaml", recipes.dump(resolved))
        write_environment(out, hashes, noted)
        progress(len(finished), total, "step 0 is measured", 0.0)
        _run_missing(worker, plan, jobs, finished, partial(_report, progress, total))
        table = _table(recipe, match, step0, [finished[pair] for pair in plan], out)
        table |= {"changes": noted} if noted else {}
        write_json(out / "compare.json", table)
    return table


def _check_seeds(seeds: int) -> None:
    if not 1 <= seeds <= _MOST_SEEDS:
        accepted = f"1 to {_MOST_SEEDS}; 3 give an interval"
        raise user_error("--seeds", "a comparison needs seeds", value=seeds, accepted=accepted)


def _table(
    recipe: Recipe, match: Measure, step0: dict[str, Any], runs: list[dict[str, Any]], out: Path
) -> dict[str, Any]:
    modality = MODALITIES[recipe.modality]()
    arms = {entry["arm"]: modality.arms[entry["arm"]] for entry in runs}
    streamed = [entry for entry in runs if arms[entry["arm"]].trains_on == "stream"]
    _check_streams(streamed, match, out)
    return {
        "recipe": recipe.description,
        "modality": recipe.modality,
        "match": match,
        "budget": getattr(recipe.budget, match),
        "unit": step0["unit"],
        "arms": {name: arm.description for name, arm in arms.items()},
        "roles": {name: arm.role for name, arm in arms.items()},
        "metrics": step0["metrics"],
        "step0": step0["step0"],
        "runs": runs,
        **judged(runs, step0["metrics"], arms, out),
        "environment": environment(),
    }


def _report(
    progress: Progress, total: int, finished: int, underway: Mapping[Pair, float], what: str
) -> None:
    progress(finished, total, what, sum(underway.values()))


def _run_missing(
    worker: _Worker,
    plan: Sequence[Pair],
    jobs: int,
    finished: dict[Pair, dict[str, Any]],
    report: Callable[[int, Mapping[Pair, float], str], None],
) -> None:
    """Adds the missing runs to ``finished``."""
    missing = [pair for pair in plan if pair not in finished]
    for pair in finished:
        remove(checkpoints_path(worker.out, *pair))
    underway = dict.fromkeys(missing, 0.0)
    make: Callable[[], _Worker] = partial(lambda same: same, worker)  # which has read the data
    if jobs > 1 and len(missing) > 1:
        make = partial(_quiet_worker, worker.recipe, worker.out)
        del worker.materials  # the workers read their own

    def tell(pair: Pair, message: tuple[float, str]) -> None:
        underway[pair], line = message
        report(len(finished), underway, f"{pair[0]}, seed {pair[1]}: {line}")

    for result in in_processes(make, missing, jobs, tell):
        pair = (result["arm"], result["seed"])
        finished[pair], underway[pair] = result, 0.0
        report(len(finished), underway, f"{pair[0]}, seed {pair[1]}")


class _Worker:
    """Runs arms of one recipe; reads the data once, and holds one model at a time."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.modality = MODALITIES[recipe.modality]()
        self.unit = self.modality.unit
        self.costs: dict[str, Cost] = {}  # by arm: the cost of a step does not depend on the seed

    @cached_property
    def materials(self) -> Any:
        return self.modality.load(self.recipe)

    def step0(self, arm: str) -> dict[str, Any]:
        """Returns scores of the untouched checkpoint, measured once per comparison, with their
        metadata.
        """
        path = self.out / "runs" / "step0.json"
        if not path.is_file():
            scores = self._build(self.recipe.model_copy(update={"arm": arm})).evaluate()
            check_finite(scores, "before the first step", STEP0_FIX)
            write_json(path, {"unit": self.unit} | scores_of_step0(scores))
        return {"unit": self.unit} | read_result(path, {"step0", "metrics"})

    def __call__(self, arm: str, seed: int, *, tell: Callable[[Any], None]) -> dict[str, Any]:
        # A comparison scores the last model of every run, so the best one need not be kept.
        checkpoint = self.recipe.checkpoint.model_copy(update={"keep_best": None})
        recipe = self.recipe.model_copy(update={"arm": arm, "seed": seed, "checkpoint": checkpoint})
        if arm not in self.costs and seed != self.recipe.seed:
            # Counted on the first seed's batches, whichever seed this process runs first.
            self._count(self.recipe.model_copy(update={"arm": arm}))
        parts = self._build(recipe)
        if arm not in self.costs:
            self._count(recipe, parts)
        checkpoints = CheckpointManager.of(checkpoints_path(self.out, arm, seed), recipe.checkpoint)
        try:
            result = self._trained(recipe, parts, checkpoints, tell)
        except Fault as fault:
            raise Fault(f"{arm}, seed {seed}: {fault}; runs that were finished are kept") from fault
        finally:
            checkpoints.wait()
        if seed == self.recipe.seed:
            with drawing():
                self.modality.picture(recipe, parts, self.out / PICTURES / f"{arm}.png")
        entry = as_json(result)
        write_entry(entry_path(self.out, arm, seed), entry, result.final)
        remove(checkpoints.folder)
        return entry

    def _trained(
        self,
        recipe: Recipe,
        parts: AnyParts,
        checkpoints: CheckpointManager,
        tell: Callable[[Any], None],
    ) -> Result:
        """Runs the arm, from its newest checkpoint if there is one."""
        _, state = checkpoints.newest() or (0, None)
        path = entry_path(self.out, recipe.arm, recipe.seed).with_suffix(".metrics.jsonl")
        pace = Pace(1.0)
        with (
            Records(path, kept=state["records"] if state else 0) as records,
            Interruption() as stop,
        ):
            if state:
                state["records"] = records.kept  # else the next resume would expect too many

            def on_record(record: Record, fraction: float) -> bool:
                written = records.append(record)
                if pace.due() and "tokens_per_second" in record:
                    rate = f"{record['tokens_per_second']:,.0f} {self.unit}/s"
                    tell((fraction, f"step {record['step']:,}, {rate}"))
                return written

            run = Run(
                recipe,
                parts,
                step0={},  # measured once for all arms, by `step0`
                cost=self.costs[recipe.arm],
                on_record=on_record,
                checkpoints=checkpoints,
                resume=state,
                stop=stop,
                keep_history=False,
            )
            del state  # frees it: the run has loaded it
            return train(run)

    def _build(self, recipe: Recipe) -> AnyParts:
        gc.collect()  # a reference cycle may keep an earlier run's model alive
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        return self.modality.build(recipe, self.materials)

    def _count(self, recipe: Recipe, parts: AnyParts | None = None) -> None:
        parts = parts or self._build(recipe)
        rehearsal = rehearse(new_step(recipe, parts), parts, recipe.learner.accumulate)
        self.costs[recipe.arm] = rehearsal.cost
        if problems := disk_shortage(
            parts.learner.model,
            recipe.checkpoint,
            self.out,
            checkpoint_bytes=rehearsal.checkpoint_bytes,
        ):
            raise UserError(*problems)


def _quiet_worker(recipe: Recipe, out: Path) -> _Worker:
    """Returns a worker for its own process; the first process has logged warnings on the data."""
    logging.getLogger("vpretrain").setLevel(logging.ERROR)
    return _Worker(recipe, out)


def _check_streams(runs: Sequence[dict[str, Any]], match: Measure, out: Path) -> None:
    """Checks that the arms of a seed drew the same batches, if they are matched by steps.

    Only runs that draw equally many are compared: those that skipped batches drew more.
    """
    if match != "steps":
        return
    alike: dict[tuple[int, int, int | None], set[str]] = {}
    for entry in runs:
        key = (entry["seed"], entry.get("draws", 1), entry.get("batches"))
        alike.setdefault(key, set()).add(entry["stream_digest"])
    for (seed, *_), digests in alike.items():
        if len(digests) != 1:
            message = (
                "the arms of this seed did not see the same stream, as after a change of data; "
                f"remove the files of that seed in {out / 'runs'}, and the same command runs them"
            )
            accepted = f"one stream, got {', '.join(sorted(map(str, digests)))}"
            raise user_error("seed", message, value=seed, accepted=accepted)


_FIX = "give it back, name another folder with --out, or --accept-changes"
