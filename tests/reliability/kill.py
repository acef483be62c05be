"""Kills commands with SIGKILL, inside saves and evaluations, at any moment, and one of their
processes alone, and compares what they come to with what an untouched command comes to.

    python -m tests.reliability.kill [--verbs train compare sweep trainer] [--kills 50] [--seed 0]
    [--out results/kills.json]

A process that has everything loaded forks the commands, so that a kill costs no start of Python but
those of a command's own workers. Prints one JSON document for each verb: how many commands were
killed and where, how many went on to their end when they were given again, how many came to the
same, and how many processes a killed command left behind.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch

from tests.reliability.killed import TRAIN, VERBS, weights
from tests.reliability.runs import record

__all__ = ["weights"]
FORK = multiprocessing.get_context("fork")
MARK = "VPRETRAIN_KILL"
"""In the environment of every process that a command starts."""
ORPHAN_SECONDS = 60.0


def child(verb, folder, jobs, patch, results):
    """The command, in this process, with what is patched around its saves and evaluations."""
    torch.set_num_threads(1)
    os.environ[MARK] = str(folder)
    os.setpgid(0, 0)
    os.close(1)
    os.open(os.devnull, os.O_WRONLY)
    spent = {place: [] for place in verb.places}
    for place, targets in verb.places.items():
        for owner, name in targets:
            setattr(owner, name, patch(place, getattr(owner, name), spent))
    verb.run(folder, jobs)
    results.put(spent)


def timed(place, function, spent):
    """The function, that notes what each of its calls takes."""

    @functools.wraps(function)
    def call(*given, **named):
        began = time.monotonic()
        try:
            return function(*given, **named)
        finally:
            spent[place].append(time.monotonic() - began)

    return call


def deadly(where, number, delay, place, function, spent):
    """The function; so many seconds into that call of that place the process kills itself."""

    @functools.wraps(function)
    def call(*given, **named):
        spent[place].append(0.0)
        if place == where and len(spent[place]) == number + 1:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return function(*given, **named)

    return call


def started(verb, folder, jobs=1, patch=timed):
    results = FORK.SimpleQueue()
    process = FORK.Process(target=child, args=(verb, folder, jobs, patch, results))
    process.start()
    return process, results


def marked(folder):
    """Processes that a command on this folder started."""
    result = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            pid = int(environ.parent.name)
            if f"{MARK}={folder}".encode() in environ.read_bytes().split(b"\0"):
                result.append(pid)
    return result


def orphans(folder):
    """How many processes of a killed command are still there after a while; they are ended."""
    end = time.monotonic() + ORPHAN_SECONDS
    while (left := marked(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def killed_inside(verb, folder, place, spent, rng):
    """Whether a command died in a save or an evaluation."""
    number = rng.randrange(len(spent[place]))
    delay = rng.random() * spent[place][number]
    process, _ = started(verb, folder, patch=functools.partial(deadly, place, number, delay))
    process.join()
    return process.exitcode == -signal.SIGKILL


def killed_anywhere(verb, folder, took, rng):
    process, _ = started(verb, folder)
    process.join(rng.random() * took)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def killed_between(verb, folder, took, rng):
    """Whether one process of a command with two workers died: the first, or a worker."""
    process, _ = started(verb, folder, jobs=2)
    end = time.monotonic() + took * (0.2 + 0.8 * rng.random())
    while process.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    workers = [pid for pid in marked(folder) if b"spawn_main" in command_line(pid)]
    if not process.is_alive() or not workers:
        process.kill()
        process.join()
        return False
    victim = rng.choice([process.pid, *workers])
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    process.join()
    return process.exitcode != 0


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def untouched(verb, folder, jobs):
    """What a command comes to, what it spent in which place, and how long it took."""
    began = time.monotonic()
    process, results = started(verb, folder, jobs)
    process.join()
    if process.exitcode:
        sys.exit(f"{verb.name} failed by itself, with exit code {process.exitcode}")
    return verb.outcome(folder), results.get(), time.monotonic() - began


def kill(verb, kills, rng, scratch, counts):
    """Adds to the counts."""
    whole, spent, took = untouched(verb, scratch / "whole", 1)
    places = [*verb.places, "anywhere"] + ["between"] * verb.parallel
    took_two = 0.0
    if verb.parallel:
        two, _, took_two = untouched(verb, scratch / "two", 2)
        assert two == whole, "two workers come to the same"
    for number in range(kills):
        folder, place = scratch / str(number), places[number % len(places)]

        def die(part, folder=folder, place=place):
            if place == "anywhere":
                return killed_anywhere(verb, folder, part * took, rng)
            if place == "between":
                return killed_between(verb, folder, part * took_two, rng)
            return killed_inside(verb, folder, place, spent, rng)

        part = 1.0
        while not die(part):
            shutil.rmtree(folder, ignore_errors=True)
            part *= 0.7  # it was done before the kill: once more, and sooner
        counts["kills"] += 1
        counts[place] += 1
        counts["orphans"] += orphans(folder)
        again, _ = started(verb, folder, 2 if place == "between" else 1)
        again.join()
        counts["resumed"] += again.exitcode == 0
        counts["same"] += again.exitcode == 0 and verb.outcome(folder) == whole
        print(verb.name, json.dumps(counts), file=sys.stderr, flush=True)
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--verbs", nargs="+", default=[*VERBS], choices=[*VERBS])
    parser.add_argument("--kills", type=int, default=50, help="of each verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    failed = False
    for name in options.verbs:
        rng = random.Random(f"{options.seed} {name}")
        counts = Counter(dict.fromkeys(("kills", "resumed", "same", "orphans"), 0))
        victims = TRAIN if name == "train" else [VERBS[name]]
        for verb in victims:
            with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
                verb.load()
                kill(verb, options.kills // len(victims), rng, Path(scratch), counts)
        record(dict(counts), options.out, name)
        failed |= counts["same"] != counts["kills"] or counts["orphans"] > 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
