"""Runs the studies of docs/results.md: every row of a study from every start with every seed,
paired.

    python benchmarks/steering.py STUDY [STUDY ...] --work DIR [--jobs 2] [--data ../shared/data]
        [--models DIR] [--against ROW]

Studies are declared in `benchmarks/studies/`. One run is one JSON file below DIR/STUDY, finished
ones are not run again; what a study came to is written to `results/STUDY.json`.
With `--against ROW` finished rows are compared with that one over held-out items, and printed.
`python benchmarks/pages.py` makes tables and plots of it. Warm checkpoints (a start) are made on
first use and cached, see `vpretrain.language.prepare`; real ones stand below `--models`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from studies import STUDIES, Start, Study
from vpretrain.config import recipe as recipes
from vpretrain.config.recipe import Recipe
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.run.paired_tests import paired_items
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.studies.statistics import paired_table
from vpretrain.system.files import write_json

ROOT = Path(__file__).parent.parent
MEANS = (
    "gate",
    "weight_spread",
    "agreement",
    "reliability",
    "gain",
    "correlation",
    "steered",
    "cosine",
    "entropy",
    "mask_mean",
    "mask_std",
    "mask_spread",
)


@dataclass(frozen=True)
class Job:
    """One run: a row of a study from one start with one seed; the empty row is the untouched
    checkpoint.
    """

    study: str
    row: str
    start: Start
    seed: int

    def path(self, work: Path) -> Path:
        """Where its result goes."""
        name = "-".join(part for part in (self.row, self.start.name, str(self.seed)) if part)
        return work / self.study / f"{name.replace('/', '_').replace(' ', '_')}.json"


def plan(study: Study) -> Iterator[Job]:
    """Step 0 of every start, then every row, start by start and seed by seed, so that an
    interrupted study has pairs.
    """
    for start in study.starts:
        yield Job(study.name, "", start, 0)
    for round_ in range(max(len(start.seeds) for start in study.starts)):
        for start in study.starts:
            if round_ < len(start.seeds):
                yield from (Job(study.name, row, start, start.seeds[round_]) for row in study.rows)


_LOADED: dict[str, Any] = {}  # the last data that was read, by what it is


def materials(recipe: Recipe) -> Any:
    """Data and learner of a recipe; read again only when another recipe's are asked for."""
    sections = ("data", "learner", "evaluate")
    key = json.dumps(recipe.model_dump(mode="json", include=set(sections)), sort_keys=True)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = MODALITIES[recipe.modality]().load(recipe)
    return _LOADED[key]


def resolved(study: Study, start: Start, row: str, seed: int, root: str, models: Path) -> Recipe:
    """The recipe of a job."""
    source = str(ROOT / study.recipe) if study.recipe.endswith(".yaml") else study.recipe
    rooted = [f"data.root={root}"] if study.recipe.endswith(".yaml") else []
    overrides = [
        *rooted,
        *study.overrides,
        *start.overrides(ROOT, rooted, models),
        *(word.replace("MODELS/", f"{models}/") for word in study.rows.get(row, ())),
        f"seed={seed}",
    ]
    return recipes.load(source, overrides, schemas=SCHEMAS)


def quarters(history: list[dict[str, Any]]) -> dict[str, list[float]]:
    """How the designer's measures moved: their means over each quarter of a run."""
    result = {}
    for key in MEANS:
        values = [record[key] for record in history if key in record]
        if len(values) >= 4:
            cuts = [len(values) * i // 4 for i in range(5)]
            parts = [values[a:b] for a, b in pairwise(cuts)]
            result[key] = [round(statistics.fmean(part), 5) for part in parts]
    return result


def run_job(job: Job, work: Path, root: str, models: Path) -> None:
    """Trains and scores one job, and writes its file."""
    study = STUDIES[job.study]
    recipe = resolved(study, job.start, job.row, job.seed, root, models)
    parts = MODALITIES[recipe.modality]().build(recipe, materials(recipe))
    job.path(work).parent.mkdir(parents=True, exist_ok=True)
    if not job.row:
        scores = parts.evaluate()
        write_json(
            job.path(work),
            {
                name: {
                    "value": s.value,
                    "stderr": s.stderr,
                    "n": s.n,
                    "higher_is_better": s.higher_is_better,
                }
                for name, s in scores.items()
            },
        )
        return
    result = train(Run(recipe, parts, step0={}))
    means = {}
    shares = {key for record in result.history for key in record if key.startswith("chosen.")}
    for key in (*MEANS, *sorted(shares)):
        if results := [record[key] for record in result.history if key in record]:
            means[key] = round(statistics.fmean(results), 5)
    metrics = list(result.final)
    curve = [
        [r["step"], round(r["seconds"], 2), *(r[m] for m in metrics)]
        for r in result.history
        if metrics[0] in r
    ]
    write_json(
        job.path(work),
        {
            "arm": job.row,
            "seed": f"{job.start.name}/{job.seed}",
            "steps": result.spent.steps,
            "tokens": result.spent.tokens,
            "seconds": round(result.spent.seconds, 1),
            "stream_digest": result.stream_digest,
            "final": {name: round(score.value, 6) for name, score in result.final.items()},
            "means": means,
            "quarters": quarters(result.history),
            "curve": curve,
            "items": {
                name: [round(x, 6) for x in score.items] for name, score in result.final.items()
            },
        },
    )


def check_streams(rows: Mapping[str, Sequence[str]], done: list[dict[str, Any]]) -> None:
    """Runs of a seed that trained on as many tokens in as many steps trained on the same ones, but
    for rows with data of their own.
    """
    alike: dict[tuple[str, int, int], set[str]] = {}
    for run in done:
        if any(word.startswith("data.") for word in rows[run["arm"]]):
            continue
        key = (run["seed"], run["steps"], run["tokens"])
        alike.setdefault(key, set()).add(run["stream_digest"])
    for (seed, *_), digests in alike.items():
        if len(digests) > 1:
            message = (
                f"{seed}: rows did not see the same stream; remove its runs and make them again"
            )
            raise SystemExit(message)


def collect(study: Study, work: Path, baseline: str | None = None) -> dict[str, Any]:
    """What the study's finished runs come to: rows against its baseline (None: its first row),
    paired over starts and seeds.
    """
    done = [
        json.loads(job.path(work).read_text())
        for job in plan(study)
        if job.row and job.path(work).is_file()
    ]
    check_streams(study.rows, done)
    step0 = {
        job.start.name: json.loads(job.path(work).read_text())
        for job in plan(study)
        if not job.row and job.path(work).is_file()
    }
    meaning = {
        name: {"higher_is_better": s["higher_is_better"]}
        for name, s in next(iter(step0.values())).items()
    }
    baseline = baseline or next(iter(study.rows))
    summary, differences = paired_table(done, meaning, baseline)
    paired = {
        row: {metric: dict(pair) for metric, pair in metrics.items()}
        for row, metrics in differences.items()
    }
    of = {(entry["arm"], entry["seed"]): entry for entry in done}
    for row, metrics in paired.items():
        seeds = [seed for arm, seed in of if arm == row and (baseline, seed) in of]
        for metric, result in metrics.items():
            sides = [
                [of[(arm, seed)]["items"][metric] for seed in seeds] for arm in (row, baseline)
            ]
            between = paired_items(*sides)
            result["items"] = {"ci95": [round(x, 6) for x in between.ci95], "p": between.p}
            if between.ci95[0] <= 0 <= between.ci95[1]:
                result["verdict"] = "undecided"
    slim = [{key: value for key, value in entry.items() if key != "items"} for entry in done]
    return {
        "study": study.name,
        "description": study.description,
        "recipe": study.recipe,
        "overrides": study.overrides,
        "rows": {row: list(overrides) for row, overrides in study.rows.items()},
        "metrics": meaning,
        "starts": {
            start.name: {"seeds": list(start.seeds), "made_by": start.description()}
            for start in study.starts
        },
        "step0": step0,
        "runs": slim,
        "summary": summary,
        "paired": paired,
        "command": f"python benchmarks/steering.py {study.name} --work DIR",
        "environment": {
            key: what for key, what in environment().items() if key != "command"
        },  # which has paths
    }


def main() -> None:
    """Makes the runs that are missing, then writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", choices=list(STUDIES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--data", default=str(ROOT / ".." / "shared" / "data"))
    parser.add_argument("--models", type=Path, default=ROOT / ".." / "shared" / "models")
    parser.add_argument("--against", metavar="ROW")
    options = parser.parse_args()
    for name in options.studies:
        study = STUDIES[name]
        if options.against:
            for row, pairs in collect(study, options.work, options.against)["paired"].items():
                for metric, pair in pairs.items():
                    print(name, row, metric, f"{pair['difference']:+.4f}", pair["items"]["ci95"])
            continue
        missing = [job for job in plan(study) if not job.path(options.work).is_file()]
        print(f"{name}: {len(missing)} of {len(list(plan(study)))} runs to do", flush=True)
        for start in study.starts:
            # Made here once, not by two processes at a time.
            start.overrides(ROOT, [f"data.root={options.data}"], options.models)
        if missing:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(options.jobs, context) as pool:
                waiting = {
                    pool.submit(run_job, job, options.work, options.data, options.models): job
                    for job in missing
                }
                for future in as_completed(waiting):
                    future.result()
                    print(
                        f"  {waiting[future].row or 'step 0'}, {waiting[future].start.name}",
                        flush=True,
                    )
        write_json(options.out / f"{name}.json", collect(study, options.work))


if __name__ == "__main__":
    main()
