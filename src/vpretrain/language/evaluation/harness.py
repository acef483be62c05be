"""lm-eval adapters: its model wrapper, and our benchmarks as its tasks.

Imports lm-eval; see :mod:`vpretrain.language.evaluation.scoring`.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from lm_eval.api.filter import Filter, FilterEnsemble
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from vpretrain.language.data.batch import left_padded
from vpretrain.language.data.layout import Layout
from vpretrain.language.data.rows import Row
from vpretrain.language.evaluation.benchmarks import Benchmark, Extract, Item
from vpretrain.system.errors import user_error

KS = (1, 2, 4, 8, 16)
"""The values of k that are reported, up to the number of samples."""


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Args:
        samples: completions of each problem, at least 1.
        temperature: 0 is greedy; above 0, the full distribution is sampled (no top-k, no top-p).
        new_tokens: maximum number of generated tokens; None uses the task's own.
        batch_size: completions in a batch.
        seed: seed of the sampling; the caller's random state is restored.
    """

    samples: int = 1
    temperature: float = 0.0
    new_tokens: int | None = None
    batch_size: int = 16
    seed: int = 0


class Wrapped(HFLM):
    """lm-eval's wrapper around a loaded model, which shows progress bars on a terminal only.

    The tokenizer is copied, since the wrapper sets its padding token and padding side.

    Args:
        model: a loaded ``transformers`` model.
        tokenizer: the model's tokenizer.
        batch_size: completions in a batch.
        rows: rows as training reads them, whose prompts are tokenised alike (conversations too).
        parse_special_tokens: see :class:`~vpretrain.language.data.layout.Layout`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        rows: Sequence[Row],
        parse_special_tokens: bool,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            backend="causal",
            softmax_dtype="float32",  # sums of bfloat16 are off by more than arms differ
        )
        self.layout = Layout(self.tokenizer, parse_special_tokens=parse_special_tokens)
        self.rows = {row.prompt: row for row in rows}
        for row in rows:
            if self.rows[row.prompt].conversation != row.conversation:
                message = f"{row.origin} has the messages of another row in other roles, which"
                raise user_error("--tasks", f"{message} cannot be told from it; leave one out")

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, which start and end as in training."""
        return self.layout.prompts([self.rows.get(text) or Row(text, "", "", "") for text in texts])

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Left-padded token ids and attention mask of prompts; prompts that are too long are cut at
        the left."""
        ids = self.prompts(strings)
        if left_truncate_len:
            ids = [each[-left_truncate_len:] for each in ids]
        return left_padded(ids, pad_id=self.tokenizer.pad_token_id)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions by lm-eval: left-padded batches, longest first."""
        return super().generate_until(
            requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty()
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())


class BenchmarkTask(Task):
    """A benchmark as an lm-eval task, with one filter for each way to extract the answer.

    Args:
        name: name of the task in the results.
        benchmark: the benchmark.
        items: the problems.
        sampling: how completions are sampled.
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
        """Does nothing: the rows are already loaded."""

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
        """Builds the requests, in the order of the problems, with unchanged prompts: no few-shot
        examples, no chat template."""
        self._instances = [
            request for doc in self.docs for request in self.construct_requests(doc, doc["prompt"])
        ]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """One completion request (repeated for samples), or one likelihood request per choice."""
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
        """Pass@k of one problem under one filter, or whether the most likely choice is right."""
        if doc["choices"]:
            likeliest = max(range(len(results)), key=lambda at: results[at][0])
            return {"accuracy": float(doc["choices"][likeliest].strip() == doc["expected"])}
        (answers,) = results
        right = sum(self.right(doc, answers))
        return {f"pass@{k}": pass_at_k(len(answers), right, k) for k in self.ks}

    def right(self, doc: dict[str, Any], answers: Sequence[str | None]) -> list[bool]:
        """Whether each of a problem's answers is right; equal answers are judged once."""
        new = {
            answer
            for answer in answers
            if answer is not None and (doc["id"], answer) not in self.judged
        }
        judge = partial(self.benchmark.judge, doc["expected"])
        with ThreadPoolExecutor(max_workers=4) as pool:  # judges mostly wait for other processes
            for answer, verdict in zip(new, pool.map(judge, new), strict=True):
                self.judged[doc["id"], answer] = verdict
        return [answer is not None and self.judged[doc["id"], answer] for answer in answers]

    def aggregation(self) -> dict[str, Any]:
        return dict.fromkeys(("accuracy", *(f"pass@{k}" for k in self.ks)), mean)

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.aggregation(), True)


class _Found(Filter):
    """An lm-eval filter that replaces completions by their extracted answers."""

    def __init__(self, find: Extract) -> None:
        self.find = find

    def apply(self, resps: Any, docs: Any) -> list[list[str | None]]:
        return [[self.find(completion) for completion in completions] for completions in resps]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The probability that k of n samples, drawn without replacement, contain a correct one.

    This is an unbiased estimate of a problem's Pass@k (Chen et al., arXiv 2107.03374, eq. 1);
    ``1 - (1 - c/n)^k`` would be too low.

    Args:
        n: number of samples, at least 1.
        correct: number of correct samples, 0 to n.
        k: 1 to n.

    Raises:
        ValueError: a number is out of range.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(
            f"n={n}, correct={correct}, k={k}; accepted: 0 <= correct <= n and 1 <= k <= n"
        )
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
