"""Many steps of a tiny run in one process: does its memory grow, does it leave files open?

    python -m tests.reliability.endurance [--steps 200000]

Prints one JSON document: resident memory after a twentieth of the steps and at the end, in MiB, its growth in per cent, and
the numbers of open files at both times. Checkpoints and evaluations happen a hundred times on the way.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.reliability.runs import build, language_recipe
from vpretrain.checkpoint import Keeper
from vpretrain.language import Language
from vpretrain.tracking import RunFolder
from vpretrain.train import run

TINY = [
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128, tie_word_embeddings: false}",
    "data.batch_size=1", "data.window_tokens=48", "data.feedback.batch_size=2", "value.meta_period=8",
    "data.evaluation.test.rows=2", "evaluate.answer=null", "arm=document_weights", "checkpoint.seconds=0",
]  # fmt: skip


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    often = max(1, steps // 100)
    recipe = language_recipe(*TINY, f"budget.steps={steps}", f"evaluate.every={often}", f"checkpoint.every={often}")
    parts = build(recipe, Language().load(recipe))
    seen = {}

    def look(record, share):
        folder.log(record)
        if record["step"] in (steps // 20, steps):
            seen[record["step"]] = (resident_mib(), len(os.listdir("/proc/self/fd")))

    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch), recipe)
        keeper = Keeper(Path(scratch) / "checkpoints", every=often)
        run(recipe, parts, step0={}, each_step=look, keeper=keeper, remember=False)
        folder.close()
    (early, files_early), (late, files_late) = seen[steps // 20], seen[steps]
    growth = 100 * (late / early - 1)
    print(json.dumps({
        "steps": steps, "mib_early": round(early, 1), "mib_late": round(late, 1), "growth_percent": round(growth, 2),
        "files_early": files_early, "files_late": files_late,
    }))  # fmt: skip
    sys.exit(growth >= 2 or files_late > files_early)


if __name__ == "__main__":
    main()
