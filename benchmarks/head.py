"""Loss, candidates and gradients of the head in chunks, against logits as a whole: seconds and peak
memory.

    python benchmarks/head.py [--rounds 3] [--shapes 512x151936 ...] [--arms plain 'pass 64' ...]
        [--minute] [--json] [--out results/head.json]

Arms, forward and backward to hidden states and head weight, all float32 and on one thread:

    plain       cross_entropy(h W^T): what a step takes that asks for no candidates
    whole       K candidates and soft targets on logits as a whole
                (vpretrain.language.learner.targets)
    pass        the same by vpretrain.language.learner.head; K = 1: one-hot
    weighted    the same with token weights, which are known after the candidates only

Each round runs every arm once, in turn. A ratio is plain seconds over the arm's, of the same round,
so that above 1 is faster than plain; the table has its median and its range over rounds. Seconds
are the process's own CPU seconds, which a busy machine disturbs less; wall seconds are in the JSON.
Memory is measured in a fresh process an arm: the highest resident size less that before the step,
the gradients included (they are the same for all).
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.head_chunks import Head
from vpretrain.language.learner.targets import SoftTargets, candidates, one_hot, soft_target_loss
from vpretrain.run.folder import environment
from vpretrain.system.files import write_json

WIDTH = 896  # of Qwen2-0.5B
SHAPES = ("512x32000", "2048x32000", "512x151936", "2048x151936")  # positions x vocabulary
ARMS = ("plain", "whole 64", "pass 1", "pass 16", "pass 64", "weighted 64")


def problem(positions: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight and labels."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, WIDTH, generator=generator).mul_(0.05).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (positions,), generator=generator)


def targets_on(ids: torch.Tensor, weighted: bool) -> SoftTargets:
    """A tenth of the mass off the true token; weights from 0.5 to 1.5."""
    mass = one_hot(ids[:, 0], ids).mass * 0.9 + 0.1 / ids.shape[1]
    return SoftTargets(
        ids, mass * torch.linspace(0.5, 1.5, len(ids))[:, None] if weighted else mass
    )


def step(
    arm: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Forward and backward of one arm; the loss."""
    kind, count, rows = (*arm.split(), "", "")[:3]
    if kind == "plain":
        loss = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels)
    elif kind == "whole":
        logits = hidden @ weight.t()
        loss = soft_target_loss(
            logits, targets_on(candidates(logits, labels, int(count)), weighted=False)
        )
    else:
        made = HeadPass(hidden, Head(weight), labels, rows=int(rows) if rows else None)
        ids = made.candidates(int(count), weighted=kind == "weighted")
        loss = made.loss(
            one_hot(labels) if count == "1" else targets_on(ids, weighted=kind == "weighted")
        )
    loss.backward()
    return loss.detach()


def clocked(run: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak_bytes(arm: str, positions: int, vocabulary: int) -> int:
    """Of a step in a fresh process, over what is there before it."""
    command = [sys.executable, __file__, "--peak", arm, str(positions), str(vocabulary)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(arm: str, positions: int, vocabulary: int) -> None:
    """What the fresh process does: a small step for the libraries' own memory, then the one in
    question.
    """
    step(arm, *problem(8, 640))
    inputs = problem(positions, vocabulary)
    before = resident("VmRSS")
    step(arm, *inputs)
    print(resident("VmHWM") - before)


def resident(which: str) -> int:
    """Bytes of this process; not by getrusage, whose maximum a fresh process has from the one that
    started it.
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(which)
    )
    return int(line.split()[1]) * 1024


def measured(arms: Sequence[str], positions: int, vocabulary: int, rounds: int) -> list[dict]:
    """A row an arm."""
    inputs = problem(positions, vocabulary)
    seconds: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm in arms:
            inputs[0].grad = inputs[1].grad = None
            result = clocked(functools.partial(step, arm, *inputs))
            if turn:  # the first is for warming up
                seconds[arm].append(result)
    rows = []
    for arm in arms:
        ratios = [
            plain[0] / own[0] for plain, own in zip(seconds["plain"], seconds[arm], strict=True)
        ]
        rows.append(
            {
                "positions": positions,
                "vocabulary": vocabulary,
                "arm": arm,
                "cpu_seconds": [round(cpu, 4) for cpu, _ in seconds[arm]],
                "wall_seconds": [round(wall, 4) for _, wall in seconds[arm]],
                "ratio": round(statistics.median(ratios), 4),
                "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
                "peak_bytes": peak_bytes(arm, positions, vocabulary),
                "gradient_bytes": 4 * WIDTH * (positions + vocabulary),
            }
        )
    return rows


def shown(row: dict, plain: dict) -> str:
    """A line of the table."""
    low, high = row["ratio_range"]
    return (
        f"{row['positions']:6} {row['vocabulary']:8} {row['arm']:12} "
        f"{statistics.median(row['cpu_seconds']):9.3f} "
        f"{row['ratio']:7.3f} [{low:.3f}, {high:.3f}] {row['peak_bytes'] / 1e6:9.0f} "
        f"{row['peak_bytes'] / plain['peak_bytes']:8.2f}"
    )


def main() -> None:
    """Prints the table, and writes the JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="positions x vocabulary")
    parser.add_argument(
        "--arms",
        nargs="+",
        default=ARMS,
        help='plain first; a third word is the chunk: "pass 64 128"',
    )
    parser.add_argument("--minute", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        print_peak(given.peak[0], int(given.peak[1]), int(given.peak[2]))
        return
    command = " ".join(["python", "benchmarks/head.py", *map(shlex.quote, sys.argv[1:])])
    rows: list[dict] = []
    result = {"environment": environment() | {"command": command}, "width": WIDTH, "rows": rows}
    if not given.json:
        print(
            f"positions vocab  {'arm':12} {'CPU s':>9} {'ratio':>7} {'range':>14} "
            f"{'peak MB':>11} {'/ plain':>8}"
        )
    for shape in ("64x2048",) if given.minute else given.shapes:
        positions, vocabulary = map(int, shape.split("x"))
        block = measured(given.arms, positions, vocabulary, given.rounds)
        rows += block
        if given.out:
            write_json(given.out, result)
        if not given.json:
            print("\n".join(shown(row, block[0]) for row in block), flush=True)
    if given.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
