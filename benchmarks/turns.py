"""Arms in turn (A B A B), each in a process of its own: what the benchmarks of cost share.

Seconds are the process's own CPU seconds on one thread, which a busy machine disturbs less than
wall seconds; both are kept. Memory is the highest resident size (VmHWM) of the fresh process less
what it held before it built anything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from vpretrain.run.folder import environment
from vpretrain.system.files import write_json

RESULTS = Path(__file__).parent.parent / "results"


class Turn:
    """A child's side: waits for its turn, and clocks the steps of it."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.steps: list[dict[str, Any]] = []

    def wait(self) -> None:
        """Hands over what was clocked, and returns when it is this arm's turn again."""
        self.pipe.send(self.steps)
        self.steps = []
        if self.pipe.recv() != "go":
            os._exit(0)

    def start(self) -> None:
        """Before a step."""
        self.began = time.process_time(), time.perf_counter()

    def stop(self, kind: str) -> None:
        """After it; ``kind``: ``plain`` or ``meta``."""
        cpu, wall = self.began
        self.steps.append(
            {"kind": kind, "cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        )


def in_turn(
    arms: Mapping[str, Callable[[Turn], None]], rounds: int
) -> Iterator[dict[str, dict[str, Any]]]:
    """Runs every arm once a round, one warm-up round before them.

    Args:
        arms: picklable; each is called in a fresh process with its :class:`Turn` and takes steps
            for as long as it is asked.
        rounds: measured ones.

    Yields:
        after every round, by arm, ``rounds``: lists of steps so far; ``peak_bytes``: see above.
    """
    context = multiprocessing.get_context("spawn")
    children: dict[str, tuple[Any, Connection, Connection]] = {}
    try:
        for name, body in arms.items():
            (pipe, theirs), (peak, their_peak) = context.Pipe(), context.Pipe()
            process = context.Process(target=_child, args=(body, theirs, their_peak), daemon=True)
            process.start()
            for end in (theirs, their_peak):  # else a child that died would be waited for
                end.close()
            children[name] = process, pipe, peak
            _answer(process, pipe, name)  # built
        before = {name: peak.recv() for name, (_, _, peak) in children.items()}
        result: dict[str, dict[str, Any]] = {name: {"rounds": []} for name in arms}
        for turn in range(rounds + 1):
            for name, (process, pipe, _) in children.items():
                pipe.send("go")
                steps = _answer(process, pipe, name)
                if turn:
                    result[name]["rounds"].append(steps)
                    result[name]["peak_bytes"] = _resident(process.pid, "VmHWM") - before[name]
            if turn:
                yield result
    finally:
        for process, _, _ in children.values():
            process.kill()


def per_step(steps: Sequence[dict[str, Any]], period: int, clock: str = "cpu") -> float:
    """Seconds a step: one in ``period`` is a meta step."""
    kinds = {kind: [s[clock] for s in steps if s["kind"] == kind] for kind in ("plain", "meta")}
    plain = statistics.mean(kinds["plain"])
    return (
        ((period - 1) * plain + statistics.mean(kinds["meta"])) / period if kinds["meta"] else plain
    )


def compared(result: dict[str, dict[str, Any]], period: int) -> list[dict[str, Any]]:
    """A row an arm; ``speed`` is the first arm's seconds over its own in the same round, so that
    above 1 is faster.
    """
    first = next(iter(result.values()))
    rows = []
    for name, own in result.items():
        ratios = [
            per_step(a, period) / per_step(b, period)
            for a, b in zip(first["rounds"], own["rounds"], strict=True)
        ]
        rows.append(
            {
                "arm": name,
                "cpu_seconds": statistics.median(
                    per_step(steps, period) for steps in own["rounds"]
                ),
                "wall_seconds": statistics.median(
                    per_step(steps, period, "wall") for steps in own["rounds"]
                ),
                "speed": statistics.median(ratios),
                "speed_range": [min(ratios), max(ratios)],
                "peak_bytes": own["peak_bytes"],
                "memory": own["peak_bytes"] / first["peak_bytes"],
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """A table of ratios."""
    print(
        f"{title}\n{'arm':30} {'CPU s/step':>10} {'speed':>7} {'range':>16} {'peak MB':>8} "
        f"{'memory':>7}"
    )
    for row in rows:
        low, high = row["speed_range"]
        print(
            f"{row['arm']:30} {row['cpu_seconds']:10.3f} {row['speed']:7.3f} [{low:6.3f}, "
            f"{high:6.3f}] "
            f"{row['peak_bytes'] / 1e6:8.0f} {row['memory']:7.3f}",
            flush=True,
        )


def parser(doc: str, *, rounds: int) -> argparse.ArgumentParser:
    """Options that all of them have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument(
        "--quick",
        action="store_true",
        help="tiny shapes, to see that it runs; no figure means anything",
    )
    made.add_argument(
        "--out", type=Path, help="JSON; default: results/NAME.json, none with --quick"
    )
    return made


def save(name: str, given: argparse.Namespace, **result: Any) -> None:
    """Writes what was found with command, machine and versions."""
    out = given.out or (None if given.quick else RESULTS / f"{name}.json")
    if out is not None:
        command = " ".join(
            ["python", f"benchmarks/{name.replace('-', '_')}.py", *map(shlex.quote, sys.argv[1:])]
        )
        write_json(
            out, {"environment": environment() | {"command": command, "threads": 1}, **result}
        )


def _child(body: Callable[[Turn], None], pipe: Connection, peak: Connection) -> None:
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # a new high-water mark
    peak.send(_resident(os.getpid(), "VmRSS"))
    body(Turn(pipe))


def _answer(process: Any, pipe: Connection, name: str) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{name} ended with exit code {process.exitcode}") from None


def _resident(pid: int, which: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(which)))
