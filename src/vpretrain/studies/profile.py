"""Measures the cost of steering: each arm in its own process, relative to the first.

A round has as many steps as a meta period, so that it contains every kind of step. The rounds of
the arms are interleaved (A B A B), so that other load on the machine affects them alike.
"""

from __future__ import annotations

import logging
import resource
import statistics
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from vpretrain.config.recipe import Recipe
from vpretrain.method.accumulation import next_batches
from vpretrain.method.step import SteeredStep
from vpretrain.run.build import new_step, seed_run
from vpretrain.run.flops import count
from vpretrain.run.folder import environment
from vpretrain.run.modalities import MODALITIES
from vpretrain.run.parts import Parts
from vpretrain.studies.compare import check_arms
from vpretrain.system import timing
from vpretrain.system.errors import Fault, user_error
from vpretrain.system.phases import phase
from vpretrain.system.processes import spawned

PARTS = ("data", "meta", "designer", "candidates", "loss", "learner")
"""Parts of a step. ``designer``: making the task; ``candidates``: the search for candidates;
``loss``: the loss with its gradient with respect to the head's inputs (only its value if whole
logits are held); ``learner``: the rest of forward, backward and optimizer; ``meta``: the whole meta
step.
"""


def profile(recipe: Recipe, *, arms: Sequence[str], rounds: int, warm_up: int) -> dict[str, Any]:
    """Measures tokens (images) per second and peak memory of each arm, and their ratios to the
    first.

    Args:
        recipe: its budget and arm are ignored.
        arms: the first is the reference.
        rounds: measured rounds of ``value.meta_period`` steps, >= 1.
        warm_up: rounds before them that are not measured, >= 1.

    Returns:
        ``{arms: {name: {tokens_per_second, spread, peak_bytes, flops}}, ratios: {throughput:
        {name: ratio}, memory: {...}, flops: {...}}, shares: {name: {part: fraction}}, ...}``.
        Throughput is the median over rounds, ``spread`` its interquartile range as a fraction of
        the median, and a ratio the median of the ratios of corresponding rounds. ``flops`` are
        counted per step, including the meta step's share. Memory is the process's peak above its
        use before the learner was built (device memory on an accelerator).

    Raises:
        UserError: there are no arms, or an arm is unknown, given twice, or not trained on the
            stream.
        Fault: a process ended.
    """
    check_arms(recipe, arms)
    children: dict[str, tuple[Any, Connection]] = {}
    try:
        for arm in arms:
            children[arm] = spawned(_child, recipe.model_copy(update={"arm": arm}))
        for _, pipe in phase("loading, arms", children.values(), len(arms)):
            _ask(pipe, "build")
        rounds_of: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for _ in phase("measuring, rounds", range(warm_up + rounds), warm_up + rounds):
            for arm, (_, pipe) in children.items():
                rounds_of[arm].append(_ask(pipe, "round"))
        rounds_of = {arm: every[warm_up:] for arm, every in rounds_of.items()}
        peaks = {arm: _ask(pipe, "peak") for arm, (_, pipe) in children.items()}
        flops = {arm: _ask(pipe, "count") for arm, (_, pipe) in children.items()}
    finally:
        for process, _ in children.values():
            process.kill()
    unit = MODALITIES[recipe.modality]().unit
    measured = _summary(rounds_of, peaks, flops, arms[0])
    return measured | {"unit": unit, "rounds": rounds, "environment": environment()}


def _summary(
    rounds_of: dict[str, list[dict[str, float]]],
    peaks: dict[str, int],
    flops: dict[str, float],
    first: str,
) -> dict[str, Any]:
    rates = {
        arm: [each["tokens"] / each["seconds"] for each in rounds]
        for arm, rounds in rounds_of.items()
    }
    arms = {
        arm: {
            "tokens_per_second": statistics.median(rate),
            "spread": _spread(rate),
            "peak_bytes": peaks[arm],
            "flops": flops[arm],
        }
        for arm, rate in rates.items()
    }
    others = [arm for arm in rates if arm != first]
    ratios = {
        "throughput": {
            arm: statistics.median(a / b for a, b in zip(rates[arm], rates[first], strict=True))
            for arm in others
        },
        "memory": {arm: peaks[arm] / peaks[first] for arm in others},
        "flops": {arm: flops[arm] / flops[first] for arm in others},
    }
    fractions = {}
    for arm, rounds in rounds_of.items():
        whole = sum(each["seconds"] for each in rounds)
        fractions[arm] = {part: sum(each[part] for each in rounds) / whole for part in PARTS}
        fractions[arm]["rest"] = 1 - sum(fractions[arm].values())
    return {"arms": arms, "ratios": ratios, "shares": fractions}


def _spread(rates: Sequence[float]) -> float:
    if len(rates) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(rates, n=4)
    return (high - low) / middle


def _ask(pipe: Connection, what: str) -> Any:
    pipe.send(what)
    try:
        answer = pipe.recv()
    except EOFError:
        raise Fault("a process of the profile ended, most likely because memory ran out") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _child(recipe: Recipe, pipe: Connection) -> None:
    """Answers ``build``, then every ``round``, then ``peak`` and ``count``."""
    logging.getLogger("vpretrain").setLevel(logging.ERROR)
    try:
        pipe.recv()
        seed_run(recipe)
        modality = MODALITIES[recipe.modality]()
        materials = modality.load(recipe)
        before = _start_peak()
        parts = modality.build(recipe, materials)
        if not parts.on_stream:  # its steps are not the stream's, which are all that is timed here
            raise user_error("--arms", "this arm does not train on the stream", value=recipe.arm)
        parts = _with_timed_methods(parts)
        step, period = new_step(recipe, parts), recipe.value.meta_period
        step.count = step.meta.start  # before that step, every arm is the baseline
        pipe.send(None)
        while pipe.recv() == "round":
            pipe.send(_round(parts, step, recipe))
        pipe.send(_peak() - before)
        pipe.recv()
        # Last, because counting uses other kernels and more memory than running.
        cost = count(step, parts, recipe.learner.accumulate)
        pipe.send((cost.steered * (period - 1) + cost.meta) / period)
        pipe.recv()
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)


def _with_timed_methods(parts: Parts) -> Parts:
    """Returns parts whose task construction is timed as a section.

    Methods that a step times itself are excluded from sections.
    """
    if parts.designer.selector is not None:
        selector: Any = _TimedMethods(parts.designer.selector, select=None)
        parts.designer.selector = selector
    designer: Any = _TimedMethods(parts.designer, make_task="designer", learn=None)
    feedback: Any = _TimedMethods(parts.feedback, gradients=None)
    return replace(parts, designer=designer, feedback=feedback)


def _round(parts: Parts, step: SteeredStep, recipe: Recipe) -> dict[str, float]:
    totals = dict.fromkeys(("tokens", "seconds", *PARTS), 0.0)
    for _ in range(recipe.value.meta_period):
        started = timing.synchronized_now()
        drawn = next_batches(parts.stream, recipe.learner.accumulate * parts.designer.draws)
        totals["data"] += timing.synchronized_now() - started
        clock = timing.Clock(synchronize=True)
        with timing.clocked(clock):
            batch, record = step.take(drawn, recipe.learner.learning_rate)
        totals["seconds"] += timing.synchronized_now() - started
        totals["tokens"] += batch.tokens
        meta = record.get("seconds_meta", 0.0)
        totals["meta"] += meta
        for part in ("designer", "candidates", "loss"):
            totals[part] += clock.seconds.get(part, 0.0)
        totals["designer"] += record.get("seconds_selection", 0.0)
        phases = record["seconds_learner"] + record["seconds_designer"]
        totals["learner"] += phases - sum(clock.seconds.values())
    return totals


class _TimedMethods:
    """Wraps a part so that calls of some methods are timed as a section.

    A method with the section None is not timed (the meta step and the selection have their own
    times).
    """

    def __init__(self, part: Any, **sections: str | None) -> None:
        self._part, self._sections = part, sections

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        if name not in self._sections:
            return method
        label = self._sections[name]

        def within(*arguments: Any, **named: Any) -> Any:
            with timing.clocked(None) if label is None else timing.section(label):
                return method(*arguments, **named)

        return within


_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _start_peak() -> int:
    """Resets the high-water mark if the system can; returns the bytes held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if _REFERENCES.exists():
        _REFERENCES.write_text("5")  # Linux: resets VmHWM
    return _process_bytes("VmRSS")


def _peak() -> int:
    return (
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _process_bytes("VmHWM")
    )


def _process_bytes(name: str) -> int:
    if not _STATUS.exists():  # not Linux: only the peak of the whole process, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
