"""Selection: a step draws more documents than it trains on, values each exactly, and packs its
batch from the chosen ones.

The value of a document is ``<u, grad_S L_d>``, with ``L_d`` the mean loss of its predicted tokens:
how fast the feedback loss falls when the learner descends on this document. One pass of the suffix
along ``u`` values all documents of a batch, without a backward pass.

A step is as large as a plain one: windows are filled with chosen documents until they hold as many
tokens as a drawn batch does on average. Documents are chosen over all processes together.

Published forms choose among sequences of the same length, one a row. Here documents of any length
are chosen, and a token budget still buys the same number of tokens.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from vpretrain.language.data.batch import TokenBatch
from vpretrain.language.data.pool import Pool
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Stream
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.steering.arms import LanguageArm, Site
from vpretrain.language.steering.baselines import OneHot
from vpretrain.language.steering.rules import Candidates
from vpretrain.method import roles, vectors
from vpretrain.method.reliability import correlation
from vpretrain.method.roles import AlignmentName, DirectedValue, Estimate, Metrics, State
from vpretrain.method.rules import standardised
from vpretrain.method.selection import Selected, Selector
from vpretrain.system import distributed
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error

log = logging.getLogger(__name__)

STARVED_DOCUMENTS = 200
"""Number of documents drawn from a source, with none chosen, after which a warning is logged."""


class Ranking(ABC):
    """Turns the values of documents into the order in which they are chosen."""

    uses_values: ClassVar[bool] = True

    @abstractmethod
    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        """A permutation of the indices of ``values``, the first to choose first.

        Args:
            values: ``[n]`` float64 on the CPU, in standard deviations over all drawn documents; the
                same on all processes.
            draw: generator of random choices, in the same state on all processes.
        """


@dataclass(frozen=True)
class Redundancy:
    """The penalty on documents similar to those already chosen.

    Documents are chosen in rounds. From the second round, the score of a document is reduced by the
    inner product of its gradient with the summed gradient ``g`` of the documents chosen so far,
    ``<g, grad_S L_d>``: one backward pass over the suffix for ``g``, and one forward pass along it.
    With as many rounds as documents this is the greedy choice, one at a time.

    Args:
        weight: >= 0; weight of the similarity to a full batch against the value, both in standard
            deviations over the drawn documents. A half full batch counts half.
        rounds: at least 1.
    """

    weight: float = 0.0
    rounds: int = 2


def document_values(context: Context, gradient: Tensor) -> Tensor:
    """``<u, grad_S L_d>`` of every document of a batch, ``[documents]``.

    The slow definition::

        for d in documents:
            values[d] = inner(u, grad(mean(losses_of[d]), S))

    Args:
        context: the learner's forward pass on the batch.
        gradient: ``[N, 1]``, ``dV/d mass`` at one-hot targets.
    """
    document, count = context.document, len(context.batch.documents)
    counts = document.bincount(minlength=count)
    sums = gradient.new_zeros(count, dtype=torch.float64).index_add(
        0, document, gradient[:, 0].double()
    )
    if context.batch.loss_mean == "example":  # each of D documents has weight 1 / D in the loss
        return sums * (counts > 0).sum()
    return sums * len(document) / counts.clamp_min(1)


class DocumentSelector(Selector[TokenBatch, Context]):
    """Fills the batches of a step with chosen documents.

    Args:
        learner: the learner whose loss gives the values, with dropout off.
        ranking: turns values into an order.
        redundancy: the penalty on similar documents.
        draws: see :class:`vpretrain.method.selection.Selector`.
        seed: seed of random choices.
    """

    def __init__(
        self,
        learner: CausalLearner,
        ranking: Ranking,
        redundancy: Redundancy,
        *,
        draws: int,
        seed: int,
    ) -> None:
        self.learner, self.ranking, self.redundancy = learner, ranking, redundancy
        self.draws = draws
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn_of: Counter[str] = Counter()
        self.chosen_of: Counter[str] = Counter()

    def check(self, stream: roles.Stream[TokenBatch]) -> None:
        """Raises ``UserError`` if a step draws more than the stream has, which would be copies."""
        if not isinstance(stream, Stream):
            return
        rows = self.draws * stream.batch_size
        available, pool, unit = stream.tokens, rows * stream.window_tokens, "tokens"
        if not stream.packing:
            available, pool, unit = stream.documents, rows, "documents"
        if pool > available:
            raise user_error(
                "designer.draws",
                f"the documents of a step are chosen among {pool:,} {unit}, more than the stream "
                "has: add documents, draw less, or make data.batch_size smaller",
                value=self.draws,
                accepted=f"a pool of at most {available:,} {unit}",
            )

    def select(
        self,
        drawn: Sequence[TokenBatch],
        value_of: DirectedValue[Context],
        *,
        meta_step: bool,
        used: bool,
    ) -> Selected[TokenBatch]:
        pool = Pool.gathered(drawn, packed=self.learner.packed)
        with evaluating(self.learner.model):
            tasks = self.one_hot_tasks(drawn) if self.ranking.uses_values else []
            values = self.values(pool, tasks, value_of)
            chosen = (
                self._chosen(pool, tasks, values.mean(dim=0), value_of)
                if used
                else self._best(pool, values.mean(dim=0))
            )
        batches, placed = pool.batches(chosen, count=len(drawn) // self.draws, share=1 / self.draws)
        metrics = self._metrics(pool.documents, placed, values.mean(dim=0)) if used else Metrics()
        if len(values) > 1:
            metrics |= self._cross_fitted(values, len(placed))
        return Selected(batches, metrics)

    def one_hot_tasks(self, drawn: Sequence[TokenBatch]) -> list[Candidates]:
        """The learner's forward pass on each batch, with the one-hot targets that are valued."""
        with torch.no_grad():
            contexts = [self.learner.forward(batch) for batch in drawn]
        return [Candidates.among(context, 1, weighted=True) for context in contexts]

    def values(
        self, pool: Pool, tasks: Sequence[Candidates], value_of: DirectedValue[Context]
    ) -> Tensor:
        """Each document's value under each feedback batch, float64 ``[F, n]``; zeros ``[1, n]`` if
        there are no tasks, because the ranking uses no values."""
        if not tasks:
            return torch.zeros(1, len(pool.documents), dtype=torch.float64)
        by_batch = [value_of.each(task.context, task) for task in tasks]
        by_feedback = zip(*by_batch, strict=True)
        return torch.stack([_pooled(pool, tasks, estimates) for estimates in by_feedback])

    def _best(self, pool: Pool, values: Tensor) -> list[int]:
        """Indices of the documents of the highest values, as many as a step takes."""
        return pool.filled([], values.argsort(descending=True).tolist(), 1 / self.draws)

    def _chosen(
        self,
        pool: Pool,
        tasks: Sequence[Candidates],
        values: Tensor,
        value_of: DirectedValue[Context],
    ) -> list[int]:
        """Indices of the documents for the step's batches, in the order they were chosen."""
        rounds = self.redundancy.rounds if self.redundancy.weight else 1
        score = values = standardised(values)
        chosen: list[int] = []
        for round_ in range(1, rounds + 1):
            rest = torch.tensor(sorted(set(range(len(values))) - set(chosen)), dtype=torch.int64)
            order = rest[self.ranking.order(score[rest], self.generator)]
            chosen = pool.filled(chosen, order.tolist(), round_ / (rounds * self.draws))
            if round_ < rounds:
                similarity = standardised(self._similarity(pool, tasks, chosen, value_of))
                score = values - self.redundancy.weight * round_ / rounds * similarity
        return chosen

    def _similarity(
        self,
        pool: Pool,
        tasks: Sequence[Candidates],
        chosen: Sequence[int],
        value_of: DirectedValue[Context],
    ) -> Tensor:
        """``<g, grad_S L_d>`` of each document d, ``[n]``, with ``g`` the gradient of the chosen
        documents' loss, summed over their tokens (or over documents, by ``loss_mean``)."""
        chosen_of_batch, terms = pool.own(chosen), []
        for number, task in enumerate(tasks):
            documents = torch.tensor(chosen_of_batch.get(number, []), device=task.mass.device)
            mask = torch.isin(task.context.document, documents).to(task.mass.dtype)
            masked = replace(task, mass=task.mass * mask[:, None])
            # The gradient is that of a mean over the batch; its weight makes it a sum.
            weight = float(task.context.batch.weight)
            terms.append((weight, value_of.gradient(task.context, masked)))
        direction = vectors.combine(*terms)
        distributed.all_reduce(list(direction.values()))
        estimates = [value_of.along(task.context, task, [direction])[0] for task in tasks]
        return _pooled(pool, tasks, estimates)

    def _metrics(
        self, documents: Sequence[Document], chosen: Sequence[int], values: Tensor
    ) -> Metrics:
        """Documents kept and dropped, their mean values, and each source's fraction of tokens."""
        metrics: Metrics = {
            "documents_kept": float(len(chosen)),
            "documents_dropped": float(len(documents) - len(chosen)),
        }
        if self.ranking.uses_values:
            metrics["value_kept"] = float(values[list(chosen)].mean())
            metrics["value_drawn"] = float(values.mean())
        return metrics | self.source_metrics(documents, [documents[at] for at in chosen])

    def source_metrics(self, drawn: Sequence[Document], chosen: Sequence[Document]) -> Metrics:
        """Each source's fraction of the drawn tokens and of the tokens trained on."""
        metrics: Metrics = {}
        for name, documents in (("drawn", drawn), ("chosen", chosen)):
            tokens: Counter[str] = Counter()
            for document in documents:
                tokens[document.source] += len(document.ids)
            total = tokens.total()
            metrics |= {f"{name}.{source}": n / total for source, n in sorted(tokens.items())}
        self._watch_sources(drawn, chosen)
        return metrics

    def _watch_sources(self, drawn: Sequence[Document], chosen: Sequence[Document]) -> None:
        """Warns once about each source that is drawn but never chosen."""
        before = self.drawn_of.copy()
        self.drawn_of.update(document.source for document in drawn)
        self.chosen_of.update(document.source for document in chosen)
        for source, count in self.drawn_of.items():
            crossed = before[source] < STARVED_DOCUMENTS <= count
            if crossed and not self.chosen_of[source] and distributed.rank() == 0:
                log.warning(
                    "none of %d documents drawn from source %r was chosen: the learner trains on "
                    "nothing of it",
                    count,
                    source,
                )

    def _cross_fitted(self, values: Tensor, count: int) -> Metrics:
        """``agreement``, the correlation of the two halves of the feedback, and ``gain``: value,
        under one half, of the ``count`` best documents under the other, minus the mean of all drawn
        documents, so that noise gains nothing. No ``gain`` if ``count`` is all of them."""
        halves = values[0::2].mean(dim=0), values[1::2].mean(dim=0)
        metrics = {"agreement": correlation(*halves)}
        if count >= values.shape[1]:  # only a rounding error, whose sign would move the guard
            return metrics
        gains = [
            float(other[one.argsort(descending=True)[:count]].mean() - other.mean())
            for one, other in (halves, halves[::-1])
        ]
        return metrics | {"gain": sum(gains) / 2}

    def state_dict(self) -> State:
        return {
            "generator": self.generator.get_state(),
            "drawn_of": dict(self.drawn_of),
            "chosen_of": dict(self.chosen_of),
        }

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.drawn_of, self.chosen_of = Counter(state["drawn_of"]), Counter(state["chosen_of"])


def _pooled(pool: Pool, tasks: Sequence[Candidates], estimates: Sequence[Estimate]) -> Tensor:
    """Values of the pool's documents, ``[n]``, from an estimate for each task of this process."""
    return pool.ordered(
        [
            document_values(task.context, estimate.gradient[0])
            for task, estimate in zip(tasks, estimates, strict=True)
        ]
    )


class OneHotOnChosen(OneHot):
    """One-hot targets on the documents that a selector chooses.

    Args:
        selector: chooses the documents.
        uses_feedback: whether the choice depends on feedback.
        alignment: alignment that gives the documents' values; None: that of the run.
    """

    selector: DocumentSelector

    def __init__(
        self,
        selector: DocumentSelector,
        *,
        uses_feedback: bool,
        alignment: AlignmentName | None,
    ) -> None:
        self.selector, self.uses_feedback, self.alignment = selector, uses_feedback, alignment

    def state_dict(self) -> State:
        return self.selector.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.selector.load_state_dict(state)


class SelectionArm(LanguageArm):
    """The keys of arms that select the documents of the stream to train on."""

    needs_run = True

    draws: Annotated[int, Field(ge=2)] = 2
    """m: number of batches drawn, as the pool to choose from, for each batch trained on."""

    @abstractmethod
    def ranking(self) -> Ranking:
        """The ranking of documents by their values."""

    @property
    def redundancy_penalty(self) -> Redundancy:
        """The penalty on documents that resemble those chosen before them; none by default."""
        return Redundancy()

    def build(self, site: Site) -> OneHotOnChosen:
        selector = DocumentSelector(
            site.learner,
            self.ranking(),
            self.redundancy_penalty,
            draws=self.draws,
            seed=site.seed,
        )
        return OneHotOnChosen(selector, uses_feedback=self.uses_feedback, alignment=self.valued_by)


class SelectionInRoundsArm(SelectionArm):
    """The keys of selecting arms with a penalty on similar documents."""

    rounds: PositiveInt = 2
    """Number of rounds in which documents are chosen under the penalty on similar ones, if that is
    above 0; as many rounds as documents choose one at a time."""
