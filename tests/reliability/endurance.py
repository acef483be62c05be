"""Many steps of a tiny run in one process: does its memory grow, does it leave files open?

    python -m tests.reliability.endurance [--steps 200000] [--minutes 40] [--out
    results/endurance.json]

Prints one JSON document: resident memory (anonymous pages) after a twentieth of the steps and at
the end, in MiB, its growth in per cent, and the numbers of open files at both times. Checkpoints
and evaluations happen a hundred times in all of the steps; with ``--minutes`` it ends where it is
by then.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from tests.reliability.runs import build, language_recipe, record
from vpretrain.language import Language
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.folder import RunFolder
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import Stopped

TINY = [
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 8, intermediate_size: 8, "
    "num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128, "
    "tie_word_embeddings: false}",
    "data.batch_size=1",
    "data.window_tokens=48",
    "data.feedback.batch_size=2",
    "value.meta_period=8",
    "data.evaluation.test.rows=2",
    "evaluate.answer=null",
    "arm=document_weights",
    "checkpoint.seconds=0",
]


def resident_mib():
    """What the process holds itself; pages of files, which the kernel takes back as it likes, are
    left out.
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon:")
    )
    return int(line.split()[1]) / 2**10


class Deadline:
    """What a run looks at to see whether a signal asked it to stop."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    @property
    def by(self):
        return "the deadline" if time.monotonic() > self.end else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    often = max(1, options.steps // 100)
    keys = [f"budget.steps={options.steps}", f"evaluate.every={often}", f"checkpoint.every={often}"]
    recipe = language_recipe(*TINY, *keys)
    parts = build(recipe, Language().load(recipe))
    seen = []

    def look(line, fraction):
        folder.log(line)
        if line["step"] % max(1, often // 20) == 0:
            seen.append((line["step"], resident_mib(), len(os.listdir("/proc/self/fd"))))

    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch), recipe)
        checkpoints = CheckpointManager(Path(scratch) / "checkpoints", every=often)
        with suppress(Stopped):
            asked = Deadline(options.minutes)
            train(
                Run(
                    recipe,
                    parts,
                    step0={},
                    on_record=look,
                    checkpoints=checkpoints,
                    keep_history=False,
                    stop=asked,
                )
            )
        folder.close()
    steps, late, files_late = seen[-1]
    _, early, files_early = next(at for at in seen if at[0] >= steps / 20)
    growth = 100 * (late / early - 1)
    record(
        {
            "steps": steps,
            "asked_for": options.steps,
            "mib_early": round(early, 1),
            "mib_late": round(late, 1),
            "growth_percent": round(growth, 2),
            "files_early": files_early,
            "files_late": files_late,
            "mib_by_step": {
                step: round(mib, 1) for step, mib, _ in seen[:: max(1, len(seen) // 40)]
            },
        },
        options.out,
    )
    sys.exit(growth >= 2 or files_late > files_early)


if __name__ == "__main__":
    main()
