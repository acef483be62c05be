"""Kills runs with SIGKILL at random moments, inside saves too, and compares what they come to with
an uninterrupted run.

    python -m tests.reliability.kill [--kills 50] [--seed 0] [--out results/kills.json]

A process that has everything loaded forks the runs, so that a kill costs no start of Python. Prints
one JSON document: how many runs were killed, how many of them inside a save, how many resumed, and
how many ended with the same weights.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.reliability.runs import language_recipe, record, vision_recipe
from vpretrain.language import Language
from vpretrain.run.launch import train_one
from vpretrain.system import files
from vpretrain.vision import Vision

FORK = multiprocessing.get_context("fork")
OFTEN = ["checkpoint.every=1", "checkpoint.seconds=0", "budget.steps=12"]
RUNS = {
    "language": language_recipe("arm=document_weights", *OFTEN),
    "vision": vision_recipe("arm=ascent", *OFTEN),
}
LOADED = {"language": Language, "vision": Vision}


def run(recipe, folder, die_at_flush=None):
    """One run in this process; with ``die_at_flush`` it kills itself at that flush to the disk:
    inside a save.
    """
    torch.set_num_threads(1)
    os.close(1)
    os.open(os.devnull, os.O_WRONLY)
    if die_at_flush is not None:
        flush, left = files._flush, [die_at_flush]

        def deadly(path):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(path)

        files._flush = deadly
    train_one(recipe, folder, lambda record, fraction: None)


def started(recipe, folder, die_at_flush=None):
    process = FORK.Process(target=run, args=(recipe, folder, die_at_flush))
    process.start()
    return process


def killed(recipe, folder, rng, took, *, inside):
    """Whether a run was killed before its end: inside a save, or at any moment of the ``took``
    seconds that a whole one takes.
    """
    process = started(recipe, folder, rng.randrange(4 * 12) if inside else None)
    if not inside:
        process.join(rng.random() * took)
        process.kill()
    process.join()
    if process.exitcode > 0:
        sys.exit(f"a run failed by itself, with exit code {process.exitcode}")
    return process.exitcode == -signal.SIGKILL


def weights(folder):
    """Hash of the model folder's weights and of the metrics that no clock says."""
    digest = hashlib.sha256()
    for path in sorted((folder / "model").rglob("*.safetensors")):
        digest.update(path.read_bytes())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    digest.update(
        json.dumps([[line["step"], line["loss"], line["batch"]] for line in lines]).encode()
    )
    return digest.hexdigest()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50, help="half of language, half of vision")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    counts = dict.fromkeys(("kills", "inside_a_save", "resumed", "same_weights"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        for name, recipe in RUNS.items():
            materials = LOADED[name]().load(recipe)
            LOADED[name].load = lambda self, recipe, held=materials: (
                held
            )  # read once, forked everywhere
            began = time.monotonic()
            process = started(recipe, Path(scratch) / name)
            process.join()
            whole, took = weights(Path(scratch) / name), time.monotonic() - began
            for number in range(options.kills // len(RUNS)):
                folder = Path(scratch) / f"{name}-{number}"
                inside = number % 3 == 0
                while not killed(recipe, folder, rng, took, inside=inside):
                    shutil.rmtree(folder)  # it was done before the kill: once more
                counts["kills"] += 1
                counts["inside_a_save"] += inside
                again = started(recipe, folder)
                again.join()
                counts["resumed"] += again.exitcode == 0
                counts["same_weights"] += again.exitcode == 0 and weights(folder) == whole
                print(json.dumps(counts), file=sys.stderr, flush=True)
    record(counts, options.out)
    sys.exit(counts["same_weights"] != counts["kills"])


if __name__ == "__main__":
    main()
