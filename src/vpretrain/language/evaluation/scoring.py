"""Scores benchmarks with lm-eval's model wrapper, evaluator, filters and standard errors.

This module imports lm-eval, which is an extra and takes seconds: import it where it is used, after
:func:`vpretrain.language.evaluation.benchmark_run.require`.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.evaluator import evaluate as run_tasks

from vpretrain.language.data.rows import encode
from vpretrain.language.evaluation.benchmarks import Benchmark, Item
from vpretrain.language.evaluation.generation import own_generation
from vpretrain.language.evaluation.harness import BenchmarkTask, Sampling, Wrapped
from vpretrain.language.evaluation.held_out import mean_over_tokens
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.run.scores import Score
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error

__all__ = ["Outcome", "Sampling", "Tasks", "score", "score_learner", "score_model"]

Tasks = Mapping[str, tuple[Benchmark, list[Item]]]
"""Benchmarks with their problems, by name in the results."""


@dataclass
class Outcome:
    """The results of one task.

    Args:
        scores: scores by metric: ``strict/pass@1``, ``flexible/pass@1``, ``accuracy``, ``nll``.
        generations: JSON rows: each completion with its extracted answers or, for multiple choice,
            each problem with the choices' likelihoods.
        cut_prompts: number of problems whose prompt was cut at the left, because the model has too
            few positions.
    """

    scores: dict[str, Score]
    generations: list[dict[str, Any]] = field(default_factory=list)
    cut_prompts: int = 0


def score(lm: Any, tasks: Tasks, sampling: Sampling) -> dict[str, Outcome]:
    """Scores an lm-eval model on tasks.

    Args:
        lm: any ``lm_eval.api.model.LM``; for a loaded ``transformers`` model use
            :func:`score_model`.
        tasks: tasks with at least one problem each.
        sampling: how completions are sampled.

    Returns:
        Completions, and scores with standard errors over problems (NaN for a single one), by task;
        local to this process.
    """
    with _quiet():
        wrapped = {
            name: BenchmarkTask(name, task, items, sampling)
            for name, (task, items) in tasks.items()
        }
        results: Any = run_tasks(lm, {"tasks": wrapped, "groups": {}, "group_map": {}})
    return {
        name: Outcome(_scores(results, name), list(_generations(task, results["samples"][name])))
        for name, task in wrapped.items()
    }


def score_model(
    model: Any,
    tokenizer: Any,
    tasks: Tasks,
    sampling: Sampling,
    *,
    parse_special_tokens: bool = False,
) -> dict[str, Outcome]:
    """Scores a loaded ``transformers`` causal language model, and restores its mode.

    Completions are sampled as ``sampling`` says, and of the checkpoint's generation settings only
    the end tokens are used (a repetition penalty, for example, would change greedy answers too).
    Special tokens before a prompt are those of the tokenizer. No gradients flow, and the global
    random state is restored.

    Args:
        model: the model, on its device.
        tokenizer: the model's tokenizer.
        tasks: see :func:`score`; tasks with solutions also get the metric ``nll``.
        sampling: how completions are sampled.
        parse_special_tokens: whether control tokens written in prompts and solutions are read as
            such, as ``data.parse_special_tokens`` says for rows.

    Raises:
        UserError: the longest completion leaves no room for a prompt, or the tokenizer has no chat
            template for rows that are conversations.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        torch.no_grad(),
        evaluating(model),
        torch.random.fork_rng(devices=devices),
        own_generation(model, tokenizer, temperature=sampling.temperature),
    ):
        torch.manual_seed(sampling.seed)
        with _quiet():
            rows = [item.row for _, items in tasks.values() for item in items if item.row]
            lm = Wrapped(model, tokenizer, sampling.batch_size, rows, parse_special_tokens)
        cut = {
            name: _cut_prompts(lm, task, items, sampling) for name, (task, items) in tasks.items()
        }
        outcomes = score(lm, tasks, sampling)
        for name, (task, items) in tasks.items():
            outcomes[name].cut_prompts = cut[name]
            if task.trained is not None:
                outcomes[name].scores["nll"] = _likelihood(lm, items, task.max_tokens)
    return outcomes


def score_learner(
    learner: CausalLearner, tokenizer: Any, tasks: Tasks, sampling: Sampling
) -> dict[str, Score]:
    """Scores a learner during training, in its training precision.

    Args:
        learner: the learner; its mode, gradients and the random state do not change.
        tokenizer: the learner's tokenizer.
        tasks: see :func:`score`; read them before the first step
            (:func:`vpretrain.language.evaluation.problems.read`).
        sampling: how completions are sampled.

    Returns:
        Scores by ``task/metric``, such as ``gsm8k/strict/pass@1``.

    Raises:
        UserError: see :func:`score_model`.
    """
    with learner.computing():
        outcomes = score_model(learner.model, tokenizer, tasks, sampling)
    return {
        f"{name}/{metric}": measured
        for name, each in outcomes.items()
        for metric, measured in each.scores.items()
    }


def _cut_prompts(lm: Wrapped, task: Benchmark, items: Sequence[Item], sampling: Sampling) -> int:
    new = 1 if task.choices else sampling.new_tokens or task.new_tokens
    room = lm.max_length - new
    if room < 1:
        raise user_error(
            "--new-tokens",
            f"the model has {lm.max_length} positions, and {task.name} writes up to {new}: no "
            "prompt fits",
            value=new,
            accepted=f"1 to {lm.max_length - 1}, less the longest prompt",
        )
    return sum(len(ids) > room for ids in lm.prompts([item.prompt for item in items]))


def _likelihood(lm: Wrapped, items: Sequence[Item], max_tokens: int | None) -> Score:
    """Mean NLL in nats over the solutions' tokens, end token included, tokenised and cut as in
    training."""
    longest = min(lm.max_length, max_tokens or lm.max_length)
    rows = [item.row for item in items if item.row is not None]
    parse = lm.layout.parse_special_tokens
    documents, counts = encode(rows, lm.tokenizer, max_tokens=longest, parse_special_tokens=parse)
    if len(documents) < len(rows):
        raise user_error(
            "--tasks",
            f"{counts.dropped + counts.empty} rows leave no token of the solution to score: their "
            f"prompts fill the {longest} tokens that a row has, or the solution is nothing to "
            "the tokenizer; shorten or drop them",
            value=f"{len(rows)} rows",
        )
    requests = []
    for document in documents:
        prompt = len(document.ids) - sum(document.predicted)
        requests.append((("", ""), document.ids[:prompt], document.ids[prompt:]))
    likelihoods = lm._loglikelihood_tokens(requests, disable_tqdm=not sys.stderr.isatty())
    totals = torch.tensor([-likelihood for likelihood, _ in likelihoods], dtype=torch.float64)
    return mean_over_tokens(
        totals, torch.tensor([float(len(ids)) for _, _, ids in requests], dtype=torch.float64)
    )


def _scores(results: Any, name: str) -> dict[str, Score]:
    """Scores from lm-eval's ``metric,filter`` results, with standard errors and problem values."""
    scores: dict[str, Score] = {}
    for key, value in results["results"][name].items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = results["results"][name][f"{metric}_stderr,{filter_name}"]
        items = tuple(
            sample[metric] for sample in results["samples"][name] if sample["filter"] == filter_name
        )
        name_of_score = metric if filter_name == "none" else f"{filter_name}/{metric}"
        scores[name_of_score] = Score(
            value, math.nan if stderr == "N/A" else stderr, len(items), True, items
        )
    return scores


def _generations(
    task: BenchmarkTask, samples: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields one row per completion or, for multiple choice, one per problem."""
    by_item: dict[int, dict[str, Mapping[str, Any]]] = {}
    for sample in samples:
        by_item.setdefault(sample["doc"]["id"], {})[sample["filter"]] = sample
    for at, ways in by_item.items():
        first = next(iter(ways.values()))
        doc = first["doc"]
        row = {
            "item": at,
            "origin": doc["origin"],
            "prompt": doc["prompt"],
            "expected": doc["expected"],
        }
        if doc["choices"]:
            # resps: for each request (a choice) a list of repeats, here one (likelihood, greedy)
            likelihoods = {
                choice.strip(): got[0][0]
                for choice, got in zip(doc["choices"], first["resps"], strict=True)
            }
            yield {**row, "log_likelihood": likelihoods, "correct": bool(first["accuracy"])}
            continue
        right = {way: task.right(doc, sample["filtered_resps"][0]) for way, sample in ways.items()}
        for number, completion in enumerate(first["resps"][0]):
            judged = {
                way: {
                    "extracted": sample["filtered_resps"][0][number],
                    "correct": right[way][number],
                }
                for way, sample in ways.items()
            }
            yield {**row, "sample": number, "completion": completion, **judged}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of lm-eval and transformers, which advise on their own command lines."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers.generation")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
