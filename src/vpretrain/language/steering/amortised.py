"""Selection by values that are predicted between meta steps.

To choose among documents each has to be valued, which costs a forward pass of each
(:mod:`vpretrain.language.steering.selection`). Here the documents of meta steps alone are valued;
the others are ranked by what a regression makes of their tokens, whose cost is a look into the
learner's embedding. It sees which words a document has, not whether it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
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
from vpretrain.method.reliability import correlation
from vpretrain.method.roles import DirectedValue, Metrics, State
from vpretrain.method.selection import Selected
from vpretrain.system.contexts import evaluating

REMEMBERED = 512
"""Valued documents that predictions are made from, the latest."""

FEWEST = 8
"""Valued documents from which nothing is predicted yet."""

RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Of which the one is taken whose predictions of documents left out are best."""


class Prediction:
    """Ridge regression of values on features, in its dual form.

    Args:
        features: ``[n, D]``, one row a valued document.
        values: ``[n]``.

    Attributes:
        skill: Pearson's r of values with their predictions from all others (leave one out).
    """

    def __init__(self, features: Tensor, values: Tensor) -> None:
        self.centre, self.mean = features.mean(dim=0), values.mean()
        self.points = self._placed(features)
        kernel = self.points @ self.points.T
        self.skill, self.weights = -1.0, torch.zeros_like(values)
        for ridge in RIDGES:
            inverse = torch.linalg.inv(kernel + ridge * torch.eye(len(values), dtype=kernel.dtype))
            weights = inverse @ (values - self.mean)
            left_out = values - weights / inverse.diagonal()
            if (skill := correlation(left_out, values)) > self.skill:
                self.skill, self.weights = skill, weights

    def __call__(self, features: Tensor) -> Tensor:
        """Of other documents, ``[m, D]`` to ``[m]``."""
        return self.mean + self._placed(features) @ (self.points.T @ self.weights)

    def _placed(self, features: Tensor) -> Tensor:
        return torch.nn.functional.normalize(features - self.centre, dim=-1)


class AmortisedSelector(DocumentSelector):
    """Fills the batches of a step with the documents of which the most is expected.

    Args:
        learner: whose loss is valued; without dropout.
        draws: see :class:`vpretrain.method.selection.Selector`.
    """

    def __init__(self, learner: CausalLearner, *, draws: int) -> None:
        super().__init__(learner, Highest(), Redundancy(), draws=draws, seed=0)  # none is used
        self.features, self.values_of = torch.empty(0, 0), torch.empty(0)
        self.prediction: Prediction | None = None

    def select(
        self, drawn: Sequence[TokenBatch], value_of: DirectedValue[Context]
    ) -> Selected[TokenBatch]:
        pool, metrics = Pool.gathered(drawn, packed=self.learner.packed), Metrics()
        features = self._features(pool.documents)
        score = self.predicted(features)
        if value_of.renewed:
            with evaluating(self.learner.model):
                values = self.values(pool, self.seen(drawn), value_of)
            exact = in_deviations(values.mean(dim=0) - values.mean())
            if self.prediction is not None:
                metrics["correlation"] = correlation(score, exact)
            self._remember(features, exact)
            score = exact
        order = self.ranking.order(score, self.generator).tolist()
        taken = pool.filled([], order, 1 / self.draws)
        batches, kept = pool.batches(taken, count=len(drawn) // self.draws, share=1 / self.draws)
        if value_of.renewed and len(values) > 1:
            metrics |= self._cross_fitted(values, len(kept))
        return Selected(batches, metrics | self._figures(pool.documents, kept, score))

    def predicted(self, features: Tensor) -> Tensor:
        """What documents are expected to be worth, in standard deviations, ``[n, D]`` to ``[n]``;
        zeros, by which the first of what is drawn are taken, until something can be predicted."""
        if self.prediction is None or self.prediction.skill <= 0:
            return torch.zeros(len(features), dtype=torch.float64)
        return self.prediction(features)

    def _features(self, documents: Sequence[Document]) -> Tensor:
        """Of each document the mean of its tokens' input embeddings, float64 ``[n, D]``, of the
        CPU."""
        embedding = self.learner.model.get_input_embeddings()
        device = next(self.learner.model.parameters()).device
        sizes = torch.tensor([len(document.ids) for document in documents], device=device)
        ids = [token for document in documents for token in document.ids]
        with torch.no_grad():
            tokens = embedding(torch.tensor(ids, device=device)).float()
        owner = torch.arange(len(documents), device=device).repeat_interleave(sizes)
        sums = tokens.new_zeros(len(documents), tokens.shape[1]).index_add(0, owner, tokens)
        return (sums / sizes[:, None]).double().cpu()

    def _remember(self, features: Tensor, values: Tensor) -> None:
        self.features = torch.cat([self.features.reshape(-1, features.shape[1]), features])
        self.values_of = torch.cat([self.values_of, values])
        self._learn(self.features[-REMEMBERED:], self.values_of[-REMEMBERED:])

    def _learn(self, features: Tensor, values: Tensor) -> None:
        self.features, self.values_of = features, values
        self.prediction = Prediction(features, values) if len(values) > FEWEST else None

    def state_dict(self) -> State:
        return super().state_dict() | {"features": self.features, "values": self.values_of}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._learn(state["features"].cpu(), state["values"].cpu())


@ARMS.declare(
    "amortised_topk",
    "as greats_topk, by values that are predicted from a document's words between meta steps",
)
class AmortisedArm(LanguageArm):
    """Selection at the price of a meta step in n."""

    needs_run = True

    draws: Annotated[int, Field(ge=2)] = 2
    """m: batches that are drawn for one that is trained on; they are what is chosen among."""

    def build(self, site: Site) -> OneHotOnChosen:
        selector = AmortisedSelector(site.learner, draws=self.draws)
        return OneHotOnChosen(selector, uses_feedback=True, alignment=None)
