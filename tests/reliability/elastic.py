"""Workers of a data-parallel run killed at random moments: does torchrun's next attempt end where
an untouched run does?

    python -m tests.reliability.elastic [--runs 10] [--processes 2] [--seed 0] [--shard] [--out
    results/elastic.json]

Prints one JSON document: runs, runs in which a worker was killed before the end, runs that
finished, and runs that finished with the weights and the losses of an untouched run. Exits with 1
unless all killed runs are among the last. The file has one part for learners that every process
holds whole, and with ``--shard`` one for learners that they share out.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.kill import weights
from tests.reliability.runs import language_recipe, record
from vpretrain.config.recipe import dump

STEPS = 12
FEW = [
    "arm=document_weights",
    f"budget.steps={STEPS}",
    "checkpoint.every=1",
    "checkpoint.seconds=0",
    "evaluate.answer=null",
    "data.evaluation.test.rows=8",
]


def started(recipe, folder, processes):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "--max-restarts=2",
        "-m",
        "vpretrain",
        "train",
        str(recipe),
        "--out",
        str(folder),
    ]
    log = folder.with_suffix(".log").open("wb")
    return subprocess.Popen(
        command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def workers(parent):
    """Process ids of what a process has started and what goes on."""
    result = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = status.parent.name, status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(rest[1]) == parent and rest[0] != "Z":
            result.append(int(number))
    return result


def killed(process, folder, step, rng):
    """Kills one worker once the checkpoint of ``step`` is there; False if all was over before."""
    while process.poll() is None:
        if any((folder / "checkpoints").glob(f"step-{step:07d}")):
            time.sleep(0.2 * rng.random())
            victims = workers(process.pid)
            if victims:
                os.kill(rng.choice(victims), signal.SIGKILL)
                return True
        time.sleep(0.005)
    return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    counts = dict.fromkeys(("runs", "killed", "finished", "same"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "recipe.yaml"
        recipe.write_text(
            dump(language_recipe(*FEW, f"learner.shard={options.shard}")), encoding="utf-8"
        )
        untouched = Path(scratch) / "untouched"
        if started(recipe, untouched, options.processes).wait():
            sys.exit(untouched.with_suffix(".log").read_text())
        whole = weights(untouched)
        for number in range(options.runs):
            folder = Path(scratch) / f"run-{number}"
            process = started(recipe, folder, options.processes)
            hit = killed(process, folder, rng.randrange(1, STEPS - 1), rng)
            finished = process.wait() == 0
            counts["runs"] += 1
            counts["killed"] += hit
            counts["finished"] += finished
            counts["same"] += finished and weights(folder) == whole
            if not finished:
                print(folder.with_suffix(".log").read_text()[-3000:], file=sys.stderr)
            print(json.dumps(counts), file=sys.stderr, flush=True)
    record(counts, options.out, "shards" if options.shard else "whole")
    sys.exit(counts["same"] != counts["runs"] or not counts["killed"])


if __name__ == "__main__":
    main()
