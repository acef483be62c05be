"""Feeds broken recipes, data, run folders and model folders, and bombs, to what reads them: each
either works, or is refused with a word on the place.

    python -m tests.reliability.fuzz [--cases 5000] [--seconds 60] [--seed 0] [--only KIND] [--out
    results/fuzz.json]

Prints one JSON document: how many cases of each kind, how many of them worked and were refused, and
every case that did neither: another exception, a problem that names no place, more than ``SECONDS``
of work or ``GIBIBYTES`` of memory. With ``--seconds`` every kind has its part of them, and the
cases that fit.
"""

import argparse
import contextlib
import faulthandler
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.reliability import bombs
from tests.reliability.broken_folders import (
    broken_models,
    broken_runs,
    changed_data,
    copied,
    damage,
    recipe_on,
)
from tests.reliability.broken_recipes import broken_recipes
from tests.reliability.broken_rows import broken_rows
from tests.reliability.runs import language_recipe, record
from vpretrain import report
from vpretrain.cli.shell import resolved_recipe
from vpretrain.config import recipe as recipes
from vpretrain.language import Language
from vpretrain.language.data import raw_rows
from vpretrain.language.evaluation.benchmark_run import open_model
from vpretrain.run.launch import train_one
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.studies.check import check
from vpretrain.studies.compare import compare
from vpretrain.studies.explain import explain
from vpretrain.system.errors import Fault, Stopped, UserError

SECONDS = 20.0
"""Of one core, that a case may take."""
GIBIBYTES = 2.0
"""That the process may come to hold in a case."""
REPOSITORY = Path(__file__).parents[2]


class Broken(Exception):
    """A case was neither read nor refused with a place."""


class _Late(BaseException):
    """Beyond the reach of ``except Exception``."""


@contextlib.contextmanager
def deadline(seconds):
    """Counts processor time, so that a busy machine is not taken for a hang."""

    def ring(*_):
        raise _Late

    before = signal.signal(signal.SIGPROF, ring)
    # Again and again: what rings inside a callback of the interpreter's is swallowed.
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


SECTIONS = "modality|description|seed|arm|threads|value|learner|budget|checkpoint|faults|evaluate|data|designer"
PLACE = re.compile(
    rf"(memory|disk|--[a-z-]+|RUN|report|data of .+|recipe\b.*|override\b.*|({SECTIONS})(\.[^\s]+)*( .+:\d+)?|.*/.+|.+:\d+( "
    r".+)?|(tiny|bomb)\.yaml( [^ ]+)?|rows)",
    re.DOTALL,
)


def places(error):
    """Raises :class:`Broken` unless every problem of a UserError names a key, a ``file:line`` or a
    file.
    """
    if not error.problems:
        raise Broken("a UserError without a problem")
    for problem in error.problems:
        if not PLACE.fullmatch(problem.where) or not problem.message:
            raise Broken(f"no place in {problem!r}")
        str(problem).encode()  # can be printed
    return "refused"


def outcome(work):
    """``works`` or ``refused``; raises :class:`Broken` for all else."""
    before = most_gibibytes()
    try:
        with deadline(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except UserError as error:
        return places(error)
    except (Fault, Stopped) as error:
        return "refused" if str(error) else "nameless"
    except _Late:
        raise Broken(f"not done after {SECONDS} s") from None
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {str(error)[:200]}") from error
    finally:
        after = most_gibibytes()
    if after > max(before, GIBIBYTES):
        raise Broken(f"held {after:.1f} GiB")
    return "works"


def most_gibibytes():
    """The most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def read_recipe(folder, case):
    """Loads a recipe, and checks it where that is quick; the rest of a case is what :func:`outcome`
    takes.
    """
    source, text, overrides, small = case
    (folder / "tiny.yaml").write_bytes(text)

    def work():
        recipes.load(source, overrides, schemas=SCHEMAS)
        if small and (problems := check(source, overrides)):
            raise UserError(*problems)

    return outcome(work)


PLACES = {
    "stream": "data.stream.0.rows",
    "feedback": "data.feedback.rows",
    "test": "data.evaluation.test",
}
SMALL = [
    "data.root=.",
    "budget={steps: 1}",
    "data.batch_size=2",
    "data.window_tokens=48",
    "data.feedback.batch_size=4",
    "evaluate.answer=null",
    "data.feedback.max_tokens=64",
    "data.feedback.rows.rows=16",
    "data.evaluation.test.rows=8",
    "data.stream.0.rows.rows=40",
    "data.stream.1.rows.rows=20",
    "value.settle_steps=0",
    "value.meta_period=1",
    "threads=1",
]


def read_rows(folder, case):
    """Reads the rows, makes documents and batches of them, and takes one step."""
    which, spec, content, on_bad_row, arm = case
    (folder / "rows").write_bytes(content)
    overrides = [
        *SMALL,
        f"{PLACES[which]}={json.dumps(spec)}",
        f"data.on_bad_row={on_bad_row}",
        f"arm={arm}",
    ]

    def work():
        recipe = language_recipe(*overrides)
        train(Run(recipe, Language().build(recipe, Language().load(recipe))))

    first = outcome(work)
    for name in ("x.jsonl", "x.jsonl.gz", "x.parquet", "x.txt"):
        (folder / name).write_bytes(content)
        outcome(lambda name=name: sum(1 for _ in raw_rows.lines(folder / name)))
        (folder / name).unlink()
    return first


def nothing(record, fraction):
    """Of a run whose steps nobody looks at."""


def written_report(out, page):
    """The page without its plots, which take most of the time."""
    with (
        mock.patch.object(report, "write_plots", lambda *given: []),
        mock.patch.object(sys.modules["vpretrain.report.page"], "panel", lambda chart, large: ""),
    ):
        report.write_report([out], page)


def read_run(folder, case):
    """Gives a damaged folder to a command that meets it: to that which wrote it, to those that look
    at it, or to one that starts from its model.
    """
    kind, damages, verb = case
    place = copied(kind, folder)
    out = place / "out"
    for how in damages:
        damage(out, how)
    verbs = {
        "train": lambda: train_one(recipe_on(place), out, nothing),
        "resume": lambda: train_one(recipe_on(place), out, nothing),
        "report": lambda: written_report(out, place / "report.html"),
        "explain": lambda: explain(out, documents=2, out=place / "explain.html"),
        "start": lambda: Language().check(resolved_recipe(str(out), [])),
        "compare": lambda: compare(
            recipe_on(place), arms=["onehot", "token_weights"], seeds=1, match="steps", out=out
        ),
    }
    if verb == "resume":
        result = out / "result.json"
        shutil.rmtree(result) if result.is_dir() else result.unlink(missing_ok=True)
    return outcome(verbs[verb])


def read_model(folder, case):
    """Checks a recipe that starts from a damaged model folder, and opens it as ``evaluate`` does."""
    kind, damages = case
    place = copied(kind, folder)
    for how in damages:
        damage(place / "out", how)

    def work():
        keys = ["learner.config=null", f"learner.model={place / 'out'}"]
        if problems := Language().check(recipe_on(place, *keys)).problems:
            raise UserError(*problems)

    first = outcome(work)
    outcome(lambda: open_model(str(place / "out"), "learner.model", dtype="float32", device="cpu"))
    return first


def read_changed(folder, case):
    """Goes on with a run whose data were changed."""
    damages, accept = case
    place = copied("run", folder)
    (place / "out" / "result.json").unlink()
    shutil.rmtree(place / "out" / "checkpoints" / "step-0000002")
    for how in damages:
        damage(place / "data", how)
    return outcome(
        lambda: train_one(recipe_on(place), place / "out", nothing, accept_changes=accept)
    )


def read_bomb(folder, case):
    """Meets a bomb."""
    return outcome(bombs.meet(folder, case))


KINDS = {
    "recipes": (broken_recipes(), read_recipe),
    "rows": (broken_rows(), read_rows),
    "runs": (broken_runs(), read_run),
    "models": (broken_models(), read_model),
    "changed": (changed_data(), read_changed),
    "bombs": (bombs.bombs(), read_bomb),
}


@contextlib.contextmanager
def traps():
    """A working folder with what is no ordinary file."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "dir").mkdir()
        (folder / "loop").symlink_to("loop")
        os.mkfifo(folder / "pipe")
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


class _TimeIsUp(BaseException):
    """Of a kind; beyond the reach of Hypothesis."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kinds = [options.only] if options.only else [*KINDS]
    counts, failures, slowest = Counter(), {}, [0.0]
    started = time.monotonic()

    def feed(kind, cases, read):
        end = time.monotonic() + options.seconds / len(kinds)

        def one(case):
            if time.monotonic() > end:
                raise _TimeIsUp
            faulthandler.dump_traceback_later(600, exit=True)
            before = time.process_time()
            counts[kind] += 1
            try:
                counts[f"{kind} {read(folder, case)}"] += 1
            except Broken as error:
                cause = error.__cause__ and traceback.extract_tb(error.__cause__.__traceback__)[-1]
                where = f"{Path(cause.filename).name}:{cause.lineno}" if cause else ""
                failures.setdefault(f"{kind} {where} {str(error)[:300]}", repr(case)[:3000])
            slowest[0] = max(slowest[0], time.process_time() - before)
            if counts[kind] % 100 == 0:
                print(
                    f"{kind} {counts[kind]}: {len(failures)} broken, {slowest[0]:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )

        few = settings(
            max_examples=options.cases // len(kinds),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        with contextlib.suppress(_TimeIsUp):
            seed(options.seed)(few(given(cases)(one)))()

    with traps() as folder:
        for kind in kinds:
            feed(kind, *KINDS[kind])
    faulthandler.cancel_dump_traceback_later()
    record(
        {
            "cases": sum(counts[kind] for kind in kinds),
            "seed": options.seed,
            **counts,
            "broken": len(failures),
            "slowest_case_cpu_seconds": round(slowest[0], 1),
            "most_gibibytes": round(most_gibibytes(), 2),
            "seconds": round(time.monotonic() - started),
            "failures": failures,
        },
        options.out,
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
