"""Repetition: documents of high value are trained on again, in place of newly drawn ones.

Selection has to value every document, at the cost of a forward pass of each
(:mod:`vpretrain.language.steering.selection`). Since values change slowly, here only the documents
drawn at a meta step are valued, and the best of them replace others until the next one: with a meta
step every n steps this costs an n-th. The price is that chosen documents are seen several times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from vpretrain.language.data.batch import TokenBatch
from vpretrain.language.data.pool import Pool
from vpretrain.language.data.rows import Document
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.steering.arms import ARMS, LanguageArm, Site
from vpretrain.language.steering.greats import Highest
from vpretrain.language.steering.selection import (
    DocumentSelector,
    OneHotOnChosen,
    Redundancy,
)
from vpretrain.method.roles import DirectedValue, Metrics, State
from vpretrain.method.rules import standardised
from vpretrain.method.selection import Selected
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error


@dataclass
class Repeat:
    """A document to train on again.

    Args:
        document: the document as drawn.
        value: standard deviations above the mean value of the documents drawn with it.
        remaining: number of repetitions that remain.
    """

    document: Document
    value: float
    remaining: int


class RepeatSelector(DocumentSelector):
    """Fills a fraction of every batch with the best documents of the last meta steps.

    Args:
        learner: the learner whose loss gives the values, with dropout off.
        fraction: fraction of the tokens of a batch, in (0, 1].
        repeats: number of times a document is trained on again, at most once a step.
        period: steps between meta steps; as many documents are remembered as that fraction of the
            batches between them needs.
        seed: seed of which documents are replaced, and of the order of those that replace them.
    """

    def __init__(
        self, learner: CausalLearner, *, fraction: float, repeats: int, period: int, seed: int
    ) -> None:
        super().__init__(learner, Highest(), Redundancy(), draws=1, seed=seed)
        self.fraction, self.repeats, self.period = fraction, repeats, period
        self.remembered: list[Repeat] = []

    def select(
        self,
        drawn: Sequence[TokenBatch],
        value_of: DirectedValue[Context],
        *,
        meta_step: bool,
        used: bool,
    ) -> Selected[TokenBatch]:
        pool, metrics = Pool.gathered(drawn, packed=self.learner.packed), Metrics()
        repeats = self._repeats(pool)
        order = torch.randperm(len(pool.documents), generator=self.generator)
        if meta_step:
            with evaluating(self.learner.model):
                values = self.values(pool, self.one_hot_tasks(drawn), value_of)
            order = self.ranking.order(values.mean(dim=0), self.generator)
            self._remember(pool.documents, values.mean(dim=0))
            if len(values) > 1:
                metrics |= self._cross_fitted(values, self._capacity(len(pool.documents)))
        first = len(pool.documents)
        pool_and_repeats = pool.joined_by([repeat.document for repeat in repeats])
        documents = pool_and_repeats.documents
        chosen = pool_and_repeats.filled(range(first, len(documents)), order.tolist(), 1.0)
        batches, placed = pool_and_repeats.batches(chosen, count=len(drawn), share=1.0)
        if not used:
            return Selected(batches, metrics)
        for at in placed:
            if at >= first:
                repeats[at - first].remaining -= 1
        self.remembered = [repeat for repeat in self.remembered if repeat.remaining]
        trained = [documents[at] for at in placed]
        repeated_tokens = sum(len(documents[at].ids) for at in placed if at >= first)
        metrics["repeated"] = repeated_tokens / sum(len(document.ids) for document in trained)
        return Selected(batches, metrics | self.source_metrics(pool.documents, trained))

    def _capacity(self, documents: int) -> int:
        """Number of documents to remember, if ``documents`` are drawn for a batch."""
        return max(1, round(documents * self.fraction * max(1.0, self.period / self.repeats)))

    def _remember(self, documents: Sequence[Document], values: Tensor) -> None:
        """Remembers the best of the newly drawn documents and those remembered so far."""
        above = standardised(values - values.mean()).tolist()
        new = [Repeat(*pair, self.repeats) for pair in zip(documents, above, strict=True)]
        best = sorted([*new, *self.remembered], key=lambda repeat: -repeat.value)
        self.remembered = best[: self._capacity(len(documents))]

    def _repeats(self, pool: Pool) -> list[Repeat]:
        """Documents to train on again in this step, least used first, up to their fraction."""
        order = torch.randperm(len(self.remembered), generator=self.generator).tolist()
        order.sort(key=lambda at: -self.remembered[at].remaining)
        repeats: list[Repeat] = []
        room = self.fraction * (pool.tokens if pool.packed else pool.rows)
        for repeat in (self.remembered[at] for at in order):
            size = len(repeat.document.ids) if pool.packed else 1
            if size <= room:
                repeats.append(repeat)
                room -= size
        return repeats

    def state_dict(self) -> State:
        kept = [
            {
                "ids": list(repeat.document.ids),
                "predicted": [bool(each) for each in repeat.document.predicted],
                "origin": repeat.document.origin,
                "source": repeat.document.source,
                "value": repeat.value,
                "left": repeat.remaining,
            }
            for repeat in self.remembered
        ]
        return super().state_dict() | {"kept": kept}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        names = ("ids", "predicted", "origin", "source")
        self.remembered = [
            Repeat(Document(**{name: saved[name] for name in names}), saved["value"], saved["left"])
            for saved in state["kept"]
        ]


@ARMS.declare(
    "repeat_topk",
    "trains again on the drawn documents whose gradients agree best with that of the feedback, in "
    "the place of a part of what is drawn after them",
)
class RepeatArm(LanguageArm):
    """Selection at an n-th of the cost, for a meta step every n steps: the best of the documents
    drawn at a meta step are trained on again until the next one."""

    needs_run = True
    compares_batches = True

    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of a batch's tokens that comes from documents trained on again."""
    repeats: PositiveInt = 8
    """Number of times a chosen document is trained on again, at most once a step. It must exceed
    ``fraction * value.meta_period``: at or below this, all documents of a meta step are kept."""

    def build(self, site: Site) -> OneHotOnChosen:
        """Builds a new designer; ``UserError`` if all documents of a meta step would be kept."""
        fewest = math.floor(self.fraction * site.meta_period) + 1
        if self.repeats < fewest:
            raise user_error(
                "designer.repeats",
                f"{self.fraction:g} of every batch until the next meta step, {site.meta_period} "
                "steps on, takes all documents of one batch: none is chosen; repeat each more "
                "often, or lower designer.fraction or value.meta_period",
                value=self.repeats,
                accepted=f"{fewest} or more",
            )
        selector = RepeatSelector(
            site.learner,
            fraction=self.fraction,
            repeats=self.repeats,
            period=site.meta_period,
            seed=site.seed,
        )
        return OneHotOnChosen(selector, uses_feedback=True, alignment=None)
