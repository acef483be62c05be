"""Signals to commands with several workers: they save, say so, and leave no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run.test_train import TINY

LONG = [*TINY, "threads=1", "budget.steps=100000", "checkpoint.seconds=0"]
SEARCH = "sweep={keys: {learner.learning_rate: [1e-2, 1e-3]}, objectives: [test/nll]}"
VERBS = {
    "compare": [*LONG, "--arms", "onehot,token_weights", "--seeds", "1", "--jobs", "2"],
    "sweep": [*LONG, SEARCH, "--trials", "2", "--jobs", "2"],
}


def workers_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(true, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "this does not happen"
        time.sleep(0.1)


def at_work(verb, out, process):
    """Whether both workers are inside their runs."""
    assert process.poll() is None, process.stderr.read()
    if verb == "compare":
        logs = [*(out / "runs").glob("*.metrics.jsonl")] if out.is_dir() else []
        return len(logs) == 2 and all(path.stat().st_size for path in logs)
    if not (out / "step0.json").is_file() or len(workers := workers_of(process)) < 2:
        return False
    # Steps of training take the processor for longer than reading the data did.
    spent = [sum(map(int, Path(f"/proc/{p}/stat").read_text().split()[13:15])) for p in workers]
    return min(spent) > 12 * os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("verb", "by"),
    [
        ("compare", signal.SIGTERM),
        pytest.param("sweep", signal.SIGKILL, marks=pytest.mark.slow),
    ],
    ids=VERBS,
)
def test_a_signal_to_a_command_reaches_its_workers(verb, by, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vpretrain", verb, "demo-language", *VERBS[verb]]
    with subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        until(lambda: at_work(verb, out, process))
        workers = workers_of(process)
        process.send_signal(by)
        said = process.stderr.read()
        code = process.wait()
    until(lambda: not any(alive(pid) for pid in workers), seconds=20)
    assert len(workers) == 2 and "Traceback" not in said
    if by == signal.SIGKILL:
        return
    assert code == 3 and "stopped by SIGTERM" in said and "the same command" in said
    assert len([*(out / "runs").glob("*.checkpoints/step-*/manifest.json")]) == 2
