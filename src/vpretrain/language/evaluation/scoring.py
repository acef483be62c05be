"""Benchmarks through lm-eval: its model wrapper, evaluator, filters and standard errors, on tasks
of our own.

Imports lm-eval, which takes seconds and is an extra: import this module where it is used, after
:func:`require`.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lm_eval.api.filter import Filter, FilterEnsemble
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as run_tasks
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import GenerationConfig

from vpretrain.language.data.batch import left_padded
from vpretrain.language.data.layout import Layout
from vpretrain.language.data.rows import Row, encode
from vpretrain.language.evaluation.benchmarks import Benchmark, Extract, Item
from vpretrain.language.evaluation.held_out import mean_over_tokens
from vpretrain.language.evaluation.passes import KS, pass_at_k
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.run.scores import Score
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error

Tasks = Mapping[str, tuple[Benchmark, list[Item]]]
"""Problems of each task, by the name it has in the results."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        samples: completions of each problem, 1 or more.
        temperature: 0 is greedy; above it the whole distribution is sampled (no top-k, no top-p).
        new_tokens: longest completion; None leaves it to the task.
        batch_size: completions at once.
        seed: of the sampling; the caller's random state is left as it was.
    """

    samples: int = 1
    temperature: float = 0.0
    new_tokens: int | None = None
    batch_size: int = 16
    seed: int = 0


@dataclass
class Outcome:
    """Of one task.

    Args:
        scores: by metric: ``strict/pass@1``, ``flexible/pass@1``, ``accuracy``, ``nll``.
        generations: every completion with what was found in it, or every choice with its
            likelihood: a row of JSON each.
        cut_prompts: problems whose prompt lost its beginning, because the model has not so many
            positions.
    """

    scores: dict[str, Score]
    generations: list[dict[str, Any]] = field(default_factory=list)
    cut_prompts: int = 0


class Wrapped(HFLM):
    """lm-eval's wrapper around a loaded model, for the time of an evaluation; its bars show on a
    terminal alone.

    The tokenizer is a copy: the wrapper gives it a padding token and a side.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            backend="causal",
        )
        self.layout = Layout(self.tokenizer)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens to generate from: prompts begin and end as they do in training."""
        return self.layout.prompts([Row(text, "", "", "") for text in texts])

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Prompts to generate from, padded, with their attention mask; too long ones lose their
        beginning.
        """
        ids = self.prompts(strings)
        if left_truncate_len:
            ids = [each[-left_truncate_len:] for each in ids]
        return left_padded(ids, pad_id=self.tokenizer.pad_token_id)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As lm-eval's: left-padded batches, longest first."""
        return super().generate_until(
            requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty()
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())


class BenchmarkTask(Task):
    """One of our benchmarks as a task of lm-eval: a filter for each way of finding the answer.

    Args:
        name: in the results.
        benchmark: what is asked.
        items: the problems.
        sampling: how completions are drawn.
    """

    def __init__(
        self, name: str, benchmark: Benchmark, items: Sequence[Item], sampling: Sampling
    ) -> None:
        super().__init__(config={"task": name, "num_fewshot": 0, "repeats": sampling.samples})
        self.VERSION = benchmark.version
        self.benchmark, self.sampling = benchmark, sampling
        self.docs = [{"id": at, **vars(item)} for at, item in enumerate(items)]
        self.ks = [k for k in KS if k <= sampling.samples]
        self.judged: dict[tuple[int, str], bool] = {}
        if benchmark.extract:
            self._filters = [
                FilterEnsemble(way, [partial(_Found, find)])
                for way, find in benchmark.extract.items()
            ]

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the rows are here."""

    def has_training_docs(self) -> bool:
        return False

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        return self.docs

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return str(doc["prompt"])

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return str(doc["expected"])

    def build_all_requests(self, **kwargs: Any) -> None:
        """Prompts as they are: no few-shot examples, no chat template; in the order of the
        problems.
        """
        self._instances = [
            request for doc in self.docs for request in self.construct_requests(doc, doc["prompt"])
        ]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """One completion (repeated for samples), or the likelihood of each choice."""
        metadata = (self.config.task, doc["id"], self.sampling.samples if not doc["choices"] else 1)
        if doc["choices"]:
            return [
                Instance("loglikelihood", doc, (ctx, choice), at, metadata)
                for at, choice in enumerate(doc["choices"])
            ]
        options = {
            "until": list(self.benchmark.stop),
            "max_gen_toks": self.sampling.new_tokens or self.benchmark.new_tokens,
            "do_sample": self.sampling.temperature > 0,
            "temperature": self.sampling.temperature,
        }
        return [Instance("generate_until", doc, (ctx, options), 0, metadata)]

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        """Pass@k of one problem under one filter, or whether the likeliest choice is the
        right one.
        """
        if doc["choices"]:
            likeliest = max(range(len(results)), key=lambda at: results[at][0])
            return {"accuracy": float(doc["choices"][likeliest].strip() == doc["expected"])}
        (answers,) = results
        right = sum(self.right(doc, answers))
        return {f"pass@{k}": pass_at_k(len(answers), right, k) for k in self.ks}

    def right(self, doc: dict[str, Any], answers: Sequence[str | None]) -> list[bool]:
        """Which of a problem's answers are right; the same answer is judged once."""
        new = {
            answer
            for answer in answers
            if answer is not None and (doc["id"], answer) not in self.judged
        }
        judge = partial(self.benchmark.judge, doc["expected"])
        with ThreadPoolExecutor(max_workers=4) as pool:  # judges wait for processes of their own
            for answer, verdict in zip(new, pool.map(judge, new), strict=True):
                self.judged[doc["id"], answer] = verdict
        return [answer is not None and self.judged[doc["id"], answer] for answer in answers]

    def aggregation(self) -> dict[str, Any]:
        return dict.fromkeys(("accuracy", *(f"pass@{k}" for k in self.ks)), mean)

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.aggregation(), True)


class _Found(Filter):
    """Answers in place of completions."""

    def __init__(self, find: Extract) -> None:
        self.find = find

    def apply(self, resps: Any, docs: Any) -> list[list[str | None]]:
        return [[self.find(completion) for completion in completions] for completions in resps]


def score(lm: Any, tasks: Tasks, sampling: Sampling) -> dict[str, Outcome]:
    """Scores a language model of lm-eval on tasks.

    Args:
        lm: any ``lm_eval.api.model.LM``; a loaded transformers model goes through
            :func:`score_model`.
        tasks: one or more problems each.
        sampling: how completions are drawn.

    Returns:
        Scores with standard errors over problems (NaN for a single one) and completions, by task;
        of this process alone.
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


def score_model(model: Any, tokenizer: Any, tasks: Tasks, sampling: Sampling) -> dict[str, Outcome]:
    """Scores a loaded ``transformers`` causal language model, which is left in the mode it was in.

    Completions are drawn as ``sampling`` says, whatever the checkpoint's own generation settings
    ask for (a repetition penalty, say, would change greedy answers too); only its end tokens are
    kept. Special tokens before a prompt are those of the tokenizer. Gradients do not flow; the
    global random state is left as it was.

    Args:
        model: the model, on its device.
        tokenizer: the model's.
        tasks: as in :func:`score`; one that scores solutions gets ``nll`` beside the rest.
        sampling: how completions are drawn.

    Raises:
        UserError: the longest completion leaves no room for a prompt.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        torch.no_grad(),
        evaluating(model),
        torch.random.fork_rng(devices=devices),
        _own_generation(model, tokenizer, sampling),
    ):
        torch.manual_seed(sampling.seed)
        with _quiet():
            lm = Wrapped(model, tokenizer, sampling.batch_size)
        cut = {
            name: _cut_prompts(lm, task, items, sampling) for name, (task, items) in tasks.items()
        }
        outcomes = score(lm, tasks, sampling)
        for name, (task, items) in tasks.items():
            outcomes[name].cut_prompts = cut[name]
            if task.solution is not None:
                outcomes[name].scores["nll"] = _likelihood(lm, items)
    return outcomes


def score_learner(
    learner: CausalLearner, tokenizer: Any, tasks: Tasks, sampling: Sampling
) -> dict[str, Score]:
    """Scores a learner in the midst of training, in the arithmetic that it trains in.

    Args:
        learner: mode, gradients and random state are left as they were.
        tokenizer: the learner's.
        tasks: as in :func:`score`, read before the first step
            (:func:`vpretrain.language.evaluation.problems.read`).
        sampling: how completions are drawn.

    Returns:
        By ``task/metric``: ``gsm8k/strict/pass@1``. Raises as :func:`score_model`.
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


def _likelihood(lm: Wrapped, items: Sequence[Item]) -> Score:
    """Mean NLL in nats over the solutions' tokens (end token included), tokenised as in
    training.
    """
    rows = [Row(item.prompt, item.text, item.origin, "") for item in items]
    documents, counts = encode(rows, lm.tokenizer, max_tokens=lm.max_length)
    if len(documents) < len(rows):
        raise user_error(
            "--tasks",
            f"{counts.dropped + counts.empty} rows leave no token of the solution to score: "
            "their prompts fill "
            f"the model's {lm.max_length} positions, or the solution is nothing to the "
            "tokenizer; shorten or drop them",
            value=f"{len(rows)} rows",
        )
    requests = []
    for document in documents:
        given = len(document.ids) - sum(document.predicted)
        requests.append((("", ""), document.ids[:given], document.ids[given:]))
    likelihoods = lm._loglikelihood_tokens(requests, disable_tqdm=not sys.stderr.isatty())
    totals = torch.tensor([-likelihood for likelihood, _ in likelihoods], dtype=torch.float64)
    return mean_over_tokens(
        totals, torch.tensor([float(len(ids)) for _, _, ids in requests], dtype=torch.float64)
    )


def _scores(results: Any, name: str) -> dict[str, Score]:
    """lm-eval's ``metric,filter`` with its standard error, and the figure of every problem."""
    scores: dict[str, Score] = {}
    for key, value in results["results"][name].items():
        metric, comma, way = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = results["results"][name][f"{metric}_stderr,{way}"]
        items = tuple(
            sample[metric] for sample in results["samples"][name] if sample["filter"] == way
        )
        shown = metric if way == "none" else f"{way}/{metric}"
        scores[shown] = Score(
            value, math.nan if stderr == "N/A" else stderr, len(items), True, items
        )
    return scores


def _generations(
    task: BenchmarkTask, samples: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row a completion; for multiple choice one a problem."""
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
            # resps: of each request (a choice) its repeats, of which there is one, a pair
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
def _own_generation(model: Any, tokenizer: Any, sampling: Sampling) -> Iterator[None]:
    theirs = model.generation_config
    ends = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    ends = sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})
    # Said outright where it is sampled: left out, transformers would keep the 50 likeliest tokens
    # alone.
    whole = {"do_sample": True, "top_k": 0, "top_p": 1.0} if sampling.temperature > 0 else {}
    model.generation_config = GenerationConfig(
        eos_token_id=ends,
        bos_token_id=theirs.bos_token_id,
        pad_token_id=theirs.pad_token_id,
        **whole,
    )
    try:
        yield
    finally:
        model.generation_config = theirs


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's and transformers' advice on command lines other than ours is kept to itself."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers.generation")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
