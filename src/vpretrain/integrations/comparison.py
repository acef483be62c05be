"""Compares the same training script with and without steering, seed by seed."""

from __future__ import annotations

import gc
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vpretrain.cli.shell import console_for_people, results_folder, say
from vpretrain.cli.tables import comparison_table, verdicts
from vpretrain.config.problems import nearest
from vpretrain.config.yaml_places import written
from vpretrain.integrations.apart import check_apart, trained_on
from vpretrain.integrations.datasets import ANSWERS, feedback_of
from vpretrain.integrations.script import check_same, digest, script_of
from vpretrain.integrations.steering import steering_arms
from vpretrain.integrations.transformers import SteeredTrainer
from vpretrain.language.data.layout import Layout
from vpretrain.language.evaluation.held_out import greedy_exact_match, negative_log_likelihood
from vpretrain.language.feedback.likelihood import LikelihoodSignal
from vpretrain.language.recipe.common import one_group
from vpretrain.report import first_sentence, write_report
from vpretrain.run.folder import environment, write_environment
from vpretrain.run.parts import FEW_ROWS
from vpretrain.run.scores import Score
from vpretrain.studies.run_files import entry_path, scores_of_step0, write_entry
from vpretrain.studies.verdicts import judged
from vpretrain.system import distributed
from vpretrain.system.errors import renamed, shortened, user_error
from vpretrain.system.files import read_json, write_json, write_text

log = logging.getLogger(__name__)

Make = Callable[[str, int], SteeredTrainer]
"""Builds a new trainer for an arm and a seed."""


def compare_arms(
    make: Make,
    held_out: Iterable[Mapping[str, Any]],
    *,
    arms: Sequence[str] = ("onehot", "document_weights"),
    seeds: int = 3,
    answer: str | None = None,
    new_tokens: int = 32,
    out: str | Path = "runs/compare-trainer",
) -> dict[str, Any]:
    """Trains every arm with every seed, and reports whether steering helped.

    Prints a table that begins with the untouched model, and a verdict; writes ``compare.json`` and
    ``report.html``. The verdict is "better" only if the intervals over seeds and over held-out rows
    both exclude zero. Called again with the same ``out``, it keeps finished runs.

    Args:
        make: called with an arm and a seed; returns a trainer with ``steering=Steering(arm=arm,
            ...)`` and ``TrainingArguments(seed=seed, ...)`` around a freshly loaded model: every
            arm of a seed starts from the same weights.
        held_out: rows in the format of ``feedback_dataset``, disjoint from it and from the training
            set. Their solutions are scored (``held_out/nll``, nats per token).
        arms: of :data:`vpretrain.integrations.transformers.STEERING_ARMS`; the first is the
            baseline.
        seeds: number of seeds, from 0 on; 3 or more give an interval over seeds.
        answer: regular expression with one group that finds the answer in a solution. If given, the
            leading metric is ``held_out/pass@1``, the fraction of rows solved by greedy
            completions. Not for tokenised rows.
        new_tokens: maximum length of a completion.
        out: folder for the results.

    Returns:
        The contents of ``compare.json``.

    Raises:
        UserError: a trainer that ``make`` returned has another arm or seed, or starts from other
            weights; a held-out row is also in the training or the feedback set; or ``out`` holds
            runs of another script.
    """
    _check_arms(arms, seeds)
    with renamed({"--out": "out"}):
        folder = results_folder(Path(out))
    test = HeldOut(list(held_out), answer, new_tokens)
    console = console_for_people(False)
    console.quiet = not distributed.is_main_process()
    runs, step0 = _all_runs(make, arms, seeds, test, folder, console)
    distributed.barrier()  # wait until the first process has written the last run
    table = _table(runs, step0, folder)
    if distributed.is_main_process():
        _write(table, runs, folder)
        console.print(comparison_table(table, console.width))
        for line in verdicts(table):
            say(console, line)
        say(console, f"report: {write_report([folder], folder / 'report.html')}")
        if sentence := first_sentence(folder):
            say(console, sentence)
    return table


def _check_arms(arms: Sequence[str], seeds: int) -> None:
    if len(set(arms)) < len(arms) or len(arms) < 2 or seeds < 1:
        message = "a comparison needs two arms or more, each named once, and a seed"
        raise user_error("compare_arms", message, value=f"arms={list(arms)}, seeds={seeds}")
    known = steering_arms()
    for arm in arms:
        if arm not in known:
            message = f"there is no such arm beside a trainer{nearest(arm, known)}"
            raise user_error("arms", message, value=arm, accepted=", ".join(known))


def _all_runs(
    make: Make, arms: Sequence[str], seeds: int, test: HeldOut, folder: Path, console: Console
) -> tuple[list[dict[str, Any]], dict[str, Score]]:
    """Returns the entries of ``compare.json``, and the scores of the untouched model."""
    runs: list[dict[str, Any]] = []
    step0: dict[str, Score] = {}
    for seed in range(seeds):
        start: float | None = None
        for arm in arms:
            trainer = _checked(make(arm, seed), arm, seed)
            sums = [p.detach().double().sum() for p in trainer.learner.model.parameters()]
            weights = float(torch.stack(sums).sum())
            if start is not None and weights != start:
                message = "make() gave this arm other weights to start from; load, or seed, anew"
                raise user_error(f"{arm}, seed {seed}", message, accepted=f"those of {arms[0]}")
            start = weights
            step0 = step0 or test.scores(trainer)
            script = script_of(trainer, test.digest, weights)
            runs.append(_run(trainer, test, script, folder, console))
            trainer.accelerator.free_memory()
            del trainer
            gc.collect()
    return runs, step0


@dataclass(frozen=True)
class HeldOut:
    """The rows that success is measured on.

    Args:
        rows: in the format of ``feedback_dataset``.
        answer: see :func:`compare_arms`.
        new_tokens: see :func:`compare_arms`.
    """

    rows: Sequence[Mapping[str, Any]]
    answer: str | None
    new_tokens: int

    def __post_init__(self) -> None:
        """Rejects rows that cannot be scored, before anything is trained."""
        if not self.rows:
            raise user_error("held_out", "there are no rows to measure success on", accepted="rows")
        if len(self.rows) < FEW_ROWS:
            log.warning(
                "held_out has %d rows, and on so few a verdict is unlikely: give %d or more",
                len(self.rows),
                FEW_ROWS,
            )
        if self.answer is None:
            return
        if "input_ids" in self.rows[0]:
            message = "solutions are found in text, and these rows are tokens; leave answer out"
            raise user_error("answer", message, value=self.answer, accepted="None")
        try:
            one_group(self.answer)
        except ValueError as error:
            raise user_error("answer", str(error), value=self.answer) from None
        texts = [text for row in self.rows if isinstance(text := _solution(row), str)]
        if texts and not any(re.search(self.answer, text) for text in texts):
            message = f"this finds an answer in none of the {len(texts)} held-out solutions"
            accepted = f"one that matches, say, {shortened(texts[0])!r}"
            raise user_error("answer", message, value=self.answer, accepted=accepted)

    @property
    def digest(self) -> str:
        """Hash of the rows and the scoring options."""
        return digest([[dict(row) for row in self.rows], self.answer, self.new_tokens])

    def scores(self, trainer: SteeredTrainer) -> dict[str, Score]:
        """Returns the scores of the trainer's current model, the leading metric first."""
        tokenizer, args = trainer.processing_class, trainer.args
        task = feedback_of(
            self.rows,
            tokenizer,
            LikelihoodSignal(),
            max_tokens=trainer.steering.feedback_max_tokens,
            where="held_out",
        )
        seen = chain(trainer.feedback, trained_on(trainer.train_dataset, tokenizer) or ())
        special = set(getattr(tokenizer, "all_special_ids", ()))
        check_apart(task.documents, seen, special, where="held_out")
        learner, size = trainer.learner, args.per_device_eval_batch_size
        pad = getattr(tokenizer, "pad_token_id", None) or 0
        with learner.computing():
            nll = negative_log_likelihood(learner, task.documents, batch_size=size, pad_id=pad)
            if self.answer is None:
                return {"held_out/nll": nll}
            with renamed({"evaluate.new_tokens": "new_tokens"}):
                solved = greedy_exact_match(
                    learner,
                    Layout(tokenizer, parse_special_tokens=True),
                    list(task.rows.values()),
                    pattern=self.answer,
                    new_tokens=self.new_tokens,
                    batch_size=size,
                )
        return {"held_out/pass@1": solved, "held_out/nll": nll}


def _solution(row: Any) -> Any:
    """Returns the answer text of a held-out row; None if it has messages, or is not a mapping."""
    if not isinstance(row, Mapping):
        return None
    return next((row[name] for name in ANSWERS if name in row), None)


def _checked(trainer: SteeredTrainer, arm: str, seed: int) -> SteeredTrainer:
    for where, value, accepted in (
        ("Steering arm", trainer.steering.arm, arm),
        ("args.seed", trainer.args.seed, seed),
    ):
        if value != accepted:
            message = "make(arm, seed) made a trainer of another; pass on what it is called with"
            raise user_error(where, message, value=value, accepted=str(accepted))
    # Makes the Trainer count the tokens trained on, for the table.
    trainer.args.include_num_input_tokens_seen = "non_padding"
    return trainer


def _run(
    trainer: SteeredTrainer, test: HeldOut, script: dict[str, str], folder: Path, console: Console
) -> dict[str, Any]:
    """Runs one arm and seed, and returns its entry of ``compare.json``; a finished run is read
    instead.
    """
    arm, seed = trainer.steering.arm, trainer.args.seed
    path = entry_path(folder, arm, seed)
    finished = distributed.from_first_rank(lambda: _read(path))
    if finished is not None:
        check_same(path, finished.get("script"), script)
        return finished
    say(console, f"{arm}, seed {seed}")
    seconds = trainer.train().metrics["train_runtime"]
    scores = test.scores(trainer)
    entry = {
        "arm": arm,
        "seed": seed,
        "steps": trainer.state.global_step,
        "tokens_or_images": int(trainer.state.num_input_tokens_seen),
        "seconds": round(seconds, 2),
        "final": {name: each.value for name, each in scores.items()},
        "script": script,
    }
    if distributed.is_main_process():
        lines = "".join(json.dumps(record) + "\n" for record in _records(trainer, seconds))
        write_text(path.with_suffix(".metrics.jsonl"), lines)
        write_entry(path, entry, scores)
    return entry


def _records(trainer: SteeredTrainer, seconds: float) -> Iterator[dict[str, float]]:
    """Yields the Trainer's log as records for the report's curves.

    The Trainer logs no times, so steps are taken to be equally long.
    """
    for entry in trainer.state.log_history:
        if "loss" in entry:
            yield {
                "step": entry["step"],
                "tokens": entry.get("num_input_tokens_seen", 0),
                "seconds": seconds * entry["step"] / trainer.state.global_step,
                "loss": entry["loss"],
                **{
                    name.removeprefix("steering/"): value
                    for name, value in entry.items()
                    if name.startswith("steering/")
                },
            }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        run = read_json(path)
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) else None


def _table(
    runs: Sequence[dict[str, Any]], step0: Mapping[str, Score], folder: Path
) -> dict[str, Any]:
    scored = scores_of_step0(step0)
    metrics, known = scored["metrics"], steering_arms()
    arms = {run["arm"]: known[run["arm"]] for run in runs}
    return {
        "recipe": "a training script of one's own",
        "modality": "language",
        "match": "steps",
        "budget": max(run["steps"] for run in runs),
        "unit": "tokens",
        "arms": {name: arm.description for name, arm in arms.items()},
        "roles": {name: arm.role for name, arm in arms.items()},
        "metrics": metrics,
        "step0": scored["step0"],
        "runs": [{key: run[key] for key in run if key != "script"} for run in runs],
        **judged(runs, metrics, arms, folder),
        "environment": environment(),
    }


def _write(table: dict[str, Any], runs: Sequence[dict[str, Any]], folder: Path) -> None:
    scripts = {run["arm"]: run["script"] for run in runs}
    shared = dict(set.intersection(*(set(script.items()) for script in scripts.values())))
    described = {
        "description": table["recipe"],
        "arm": runs[0]["arm"],
        "seed": 0,
        "script": {name: value for name, value in runs[0]["script"].items() if name in shared},
        "arms": {
            arm: {name: value for name, value in script.items() if name not in shared}
            for arm, script in scripts.items()
        },
    }
    write_text(folder / "recipe.yaml", written(described))
    write_environment(folder, {}, ())
    write_json(folder / "compare.json", table)
