"""Arms side by side: the same checkpoint, the same stream, paired seeds, step 0 in the table."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vpretrain.config import recipe as recipes
from vpretrain.config.changes import changes
from vpretrain.config.recipe import Budget, Measure, Recipe
from vpretrain.run.build import new_step
from vpretrain.run.flops import Cost, count
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import Parts
from vpretrain.run.run import Run
from vpretrain.run.train import Result, train
from vpretrain.studies.paired_tests import paired_items
from vpretrain.studies.statistics import paired_table
from vpretrain.system.errors import Fault, UserError, user_error
from vpretrain.system.files import write_json
from vpretrain.system.processes import in_processes

PICTURES = "pictures"
"""Folder, beside the results, of what the first seed's designers make of a batch, one file an arm
that can be drawn.
"""


def with_budget(recipe: Recipe, match: Measure, amount: float) -> Recipe:
    """The recipe with one limit alone, so that every arm ends by the same measure."""
    if amount <= 0:
        raise user_error(
            "--budget", "a run needs something to use up", value=amount, accepted="more than 0"
        )
    limit: dict[str, Any] = {match: round(amount) if match in ("steps", "tokens") else amount}
    return recipe.model_copy(update={"budget": Budget(**limit)})


def check_arms(recipe: Recipe, arms: Sequence[str]) -> None:
    """Refuses arms that the modality does not have, and arms given twice."""
    known = MODALITIES[recipe.modality]().arms
    for arm in arms:
        if arm not in known or arms.count(arm) > 1:
            said = "is given twice" if arm in known else f"is not an arm of {recipe.modality}"
            raise user_error(
                "--arms",
                f"{arm} {said}",
                value=",".join(arms),
                accepted="distinct ones of " + ", ".join(known),
            )


def compare(
    recipe: Recipe,
    *,
    arms: Sequence[str],
    seeds: int,
    match: Measure,
    out: Path,
    jobs: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Any]:
    """Runs every arm with every seed and writes ``compare.json``; finished runs in ``out`` are not
    run again.

    Args:
        recipe: with the budget of one run; its own arm and seed are ignored.
        arms: the first is the baseline.
        seeds: how many, from the recipe's seed on; an arm's run of a seed sees the stream that the
            others saw.
        match: the measure of the budget (what every arm has the same of).
        out: folder for ``compare.json`` and ``runs/``.
        jobs: runs at a time, in processes of their own; more than one spoils figures in seconds.
        progress: told (runs done, runs in all, what was last done).

    Returns:
        ``compare.json`` as a dictionary (docs: outputs).

    Raises:
        UserError: bad arms or numbers, or ``out`` holds runs of another recipe.
    """
    check_arms(recipe, arms)
    if seeds < 1:
        raise user_error(
            "--seeds",
            "a comparison needs seeds",
            value=seeds,
            accepted="1 or more; 3 give an interval",
        )
    resolved = recipe.model_copy(update={"arm": arms[0]})
    if changed := changes(out, resolved, "give it back, or name another folder with --out"):
        raise UserError(*changed)

    total = len(arms) * seeds + 1
    # Baseline, then the others, seed by seed: an interrupted comparison has whole pairs.
    plan = [(arm, recipe.seed + k) for k in range(seeds) for arm in arms]
    finished = {pair: _read(path) for pair in plan if (path := _path(out, *pair)).is_file()}
    missing = [pair for pair in plan if pair not in finished]
    progress(len(finished), total, "reading data")
    step0, meaning = _step0(recipe, arms[0], out)
    # Not before data and model were found to be in order.
    (out / "recipe.yaml").write_text(recipes.dump(resolved), encoding="utf-8")
    progress(len(finished) + 1, total, "step 0")
    for result in _run_all(recipe, missing, out, jobs):
        finished[(result["arm"], result["seed"])] = result
        progress(len(finished) + 1, total, f"{result['arm']}, seed {result['seed']}")

    runs = [finished[pair] for pair in plan]
    _check_streams(
        [entry for entry in runs if entry["arm"] not in MODALITIES[recipe.modality]().direct], match
    )
    summary, paired = paired_table(runs, meaning, arms[0])
    _add_items(paired, out, arms[0], sorted({entry["seed"] for entry in runs}))
    table = {
        "recipe": recipe.description,
        "modality": recipe.modality,
        "match": match,
        "budget": getattr(recipe.budget, match),
        "metrics": meaning,
        "step0": step0,
        "runs": runs,
        "summary": summary,
        "paired": paired,
        "environment": environment(),
    }
    write_json(out / "compare.json", table)
    return table


def _add_items(paired: dict[str, Any], out: Path, baseline: str, seeds: Sequence[int]) -> None:
    """Adds each difference's interval over held-out items; one that is not clear of zero there
    decides nothing.
    """

    def items(arm: str) -> list[dict[str, list[float]]]:
        paths = [_path(out, arm, seed).with_suffix(".items.json") for seed in seeds]
        return [_read(path) for path in paths if path.is_file()]

    of_baseline = items(baseline)
    for arm, metrics in paired.items():
        of_arm = items(arm)
        if not len(of_arm) == len(of_baseline) == len(seeds):
            continue
        for metric, found in metrics.items():
            between = paired_items(
                [run[metric] for run in of_arm], [run[metric] for run in of_baseline]
            )
            found["items"] = {"ci95": between.ci95, "p": between.p}
            if between.ci95[0] <= 0 <= between.ci95[1]:
                found["verdict"] = "undecided"


def _step0(recipe: Recipe, arm: str, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = out / "runs" / "step0.json"
    if not path.is_file():
        modality = MODALITIES[recipe.modality]()
        baseline = recipe.model_copy(update={"arm": arm})
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        parts: Parts = modality.build(baseline, modality.load(baseline))
        scores = parts.evaluate()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "step0": {
                    name: {"value": s.value, "stderr": s.stderr, "n": s.n}
                    for name, s in scores.items()
                },
                "metrics": {
                    name: {"higher_is_better": s.higher_is_better} for name, s in scores.items()
                },
            },
        )
    found = _read(path)
    return found["step0"], found["metrics"]


def _run_all(recipe: Recipe, plan: Sequence[tuple[str, int]], out: Path, jobs: int) -> Any:
    if jobs == 1 or len(plan) < 2:
        worker = _Worker(recipe, out)
        for arm, seed in plan:
            yield worker(arm, seed)
        return
    yield from in_processes(_run_one, plan, jobs, set_up=_set_up, given=(recipe, out))


class _Worker:
    """Runs arms of one recipe; the data is read once."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.modality = MODALITIES[recipe.modality]()
        self.materials = self.modality.load(recipe)
        self.costs: dict[str, Cost] = {}  # by arm: what a step costs does not depend on the seed

    def __call__(self, arm: str, seed: int) -> dict[str, Any]:
        recipe = self.recipe.model_copy(update={"arm": arm, "seed": seed})
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        if arm not in self.costs:
            first = self.recipe.model_copy(
                update={"arm": arm}
            )  # whichever seed this process runs first
            counted = self.modality.build(first, self.materials)
            self.costs[arm] = count(new_step(first, counted), counted, first.learner.accumulate)
        # Step 0 is the same in every arm and measured once, apart.
        parts = self.modality.build(recipe, self.materials)
        try:
            result = train(Run(recipe, parts, step0={}, cost=self.costs[arm]))
        except Fault as fault:
            raise Fault(f"{arm}, seed {seed}: {fault}; runs that were finished are kept") from fault
        if seed == self.recipe.seed:
            self.modality.picture(recipe, parts, self.out / PICTURES / f"{arm}.png")
        found = as_json(result)
        with (self.out / "runs" / f"{arm}-{seed}.metrics.jsonl").open(
            "w", encoding="utf-8"
        ) as lines:
            lines.writelines(json.dumps(record) + "\n" for record in result.history)
        items = {name: [round(x, 6) for x in score.items] for name, score in result.final.items()}
        write_json(_path(self.out, arm, seed).with_suffix(".items.json"), items)
        write_json(_path(self.out, arm, seed), found)
        return found


_WORKER: list[_Worker] = []  # one a process of the pool, set up once


def _set_up(recipe: Recipe, out: Path) -> None:
    logging.getLogger("vpretrain").setLevel(
        logging.ERROR
    )  # what there is to say of the data was said by the parent
    _WORKER.append(_Worker(recipe, out))


def _run_one(arm: str, seed: int) -> dict[str, Any]:
    return _WORKER[0](arm, seed)


def as_json(result: Result) -> dict[str, Any]:
    """One entry of ``runs`` in ``compare.json``."""
    return {
        "arm": result.arm,
        "seed": result.seed,
        "steps": result.spent.steps,
        "tokens_or_images": result.spent.tokens,
        "flops": result.spent.flops,
        "seconds": round(result.spent.seconds, 2),
        "stream_digest": result.stream_digest,
        "final": {name: score.value for name, score in result.final.items()},
    }


def _path(out: Path, arm: str, seed: int) -> Path:
    return out / "runs" / f"{arm}-{seed}.json"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        message = (
            f"this result is not whole ({error}); remove the file, and the same command "
            "runs "
            "what is missing"
        )
        raise user_error(str(path), message) from None


def _check_streams(runs: Sequence[dict[str, Any]], match: Measure) -> None:
    """At equal steps every arm of a seed must have drawn the same batches."""
    if match != "steps":
        return
    for seed in {entry["seed"] for entry in runs}:
        digests = {entry["stream_digest"] for entry in runs if entry["seed"] == seed}
        if len(digests) != 1:
            raise RuntimeError(
                f"the arms of seed {seed} did not see the same stream: {sorted(digests)}"
            )
