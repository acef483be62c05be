"""Repetition: documents of high value are trained on again, in the place of others that are drawn.

To choose among documents each has to be valued, which costs a forward pass of each
(:mod:`vpretrain.language.steering.selection`). Values change slowly, so here only what a meta step
draws is valued, and its best documents stand in for others until the next: a meta step in n costs
an n-th of that. What it costs in documents is that a chosen one is seen several times.
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
    in_deviations,
)
from vpretrain.method.roles import DirectedValue, Metrics, State
from vpretrain.method.selection import Selected
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error


@dataclass
class Kept:
    """A document that is to be trained on again.

    Args:
        document: as it was drawn.
        value: standard deviations above the mean of what was drawn with it.
        left: how many times more.
    """

    document: Document
    value: float
    left: int


class RepeatSelector(DocumentSelector):
    """Fills a fraction of every batch with the best documents of the last meta steps.

    Args:
        learner: whose loss is valued; without dropout.
        fraction: of the tokens of a batch, in (0, 1].
        repeats: times that a kept document is trained on again, once a step at most.
        period: steps from one meta step to the next: as many documents are kept as that fraction of
            their batches takes.
        seed: of which documents make room, and in what order those that are kept come.
    """

    def __init__(
        self, learner: CausalLearner, *, fraction: float, repeats: int, period: int, seed: int
    ) -> None:
        super().__init__(learner, Highest(), Redundancy(), draws=1, seed=seed)
        self.fraction, self.repeats, self.period = fraction, repeats, period
        self.kept: list[Kept] = []

    def select(
        self,
        drawn: Sequence[TokenBatch],
        value_of: DirectedValue[Context],
        *,
        meta_step: bool,
        used: bool,
    ) -> Selected[TokenBatch]:
        pool, metrics = Pool.gathered(drawn, packed=self.learner.packed), Metrics()
        again = self._again(pool)
        order = torch.randperm(len(pool.documents), generator=self.generator)
        if meta_step:
            with evaluating(self.learner.model):
                values = self.values(pool, self.seen(drawn), value_of)
            order = self.ranking.order(values.mean(dim=0), self.generator)
            self._keep(pool.documents, values.mean(dim=0))
            if len(values) > 1:
                metrics |= self._cross_fitted(values, self._places(len(pool.documents)))
        first = len(pool.documents)
        whole = pool.joined_by([kept.document for kept in again])
        chosen = whole.filled(range(first, len(whole.documents)), order.tolist(), 1.0)
        batches, taken = whole.batches(chosen, count=len(drawn), share=1.0)
        if not used:
            return Selected(batches, metrics)
        for at in taken:
            if at >= first:
                again[at - first].left -= 1
        self.kept = [kept for kept in self.kept if kept.left]
        trained = [whole.documents[at] for at in taken]
        repeated = sum(len(whole.documents[at].ids) for at in taken if at >= first)
        metrics["repeated"] = repeated / sum(len(document.ids) for document in trained)
        return Selected(batches, metrics | self.shares(pool.documents, trained))

    def _places(self, documents: int) -> int:
        """How many are kept, where a batch holds so many documents."""
        return max(1, round(documents * self.fraction * max(1.0, self.period / self.repeats)))

    def _keep(self, documents: Sequence[Document], values: Tensor) -> None:
        """The best of what was kept and of what was drawn."""
        above = in_deviations(values - values.mean()).tolist()
        new = [Kept(*pair, self.repeats) for pair in zip(documents, above, strict=True)]
        best = sorted([*new, *self.kept], key=lambda kept: -kept.value)
        self.kept = best[: self._places(len(documents))]

    def _again(self, pool: Pool) -> list[Kept]:
        """What this step trains on again, the least used first, up to its part of the batch."""
        order = torch.randperm(len(self.kept), generator=self.generator).tolist()
        order.sort(key=lambda at: -self.kept[at].left)
        found: list[Kept] = []
        room = self.fraction * (pool.tokens if pool.packed else pool.rows)
        for kept in (self.kept[at] for at in order):
            size = len(kept.document.ids) if pool.packed else 1
            if size <= room:
                found.append(kept)
                room -= size
        return found

    def state_dict(self) -> State:
        kept = [
            {
                "ids": list(kept.document.ids),
                "predicted": [bool(each) for each in kept.document.predicted],
                "origin": kept.document.origin,
                "source": kept.document.source,
                "value": kept.value,
                "left": kept.left,
            }
            for kept in self.kept
        ]
        return super().state_dict() | {"kept": kept}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        names = ("ids", "predicted", "origin", "source")
        self.kept = [
            Kept(Document(**{name: one[name] for name in names}), one["value"], one["left"])
            for one in state["kept"]
        ]


@ARMS.declare(
    "repeat_topk",
    "trains again on the drawn documents whose gradients agree best with that of the feedback, in "
    "the place of a part of what is drawn after them",
)
class RepeatArm(LanguageArm):
    """Selection at the price of a meta step in n: what a meta step draws is valued, and the best of
    it is trained on again until the next."""

    needs_run = True

    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the tokens of a batch, those that are trained on again."""
    repeats: PositiveInt = 8
    """Times that a document is trained on again, once a step at most. The less, the more documents
    of a meta step are kept; at ``fraction * value.meta_period`` all of them: refused."""

    def build(self, site: Site) -> OneHotOnChosen:
        """Raises UserError where all that a meta step draws would be kept, and nothing chosen."""
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
