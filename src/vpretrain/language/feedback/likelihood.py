"""Verified solutions, and the gradient of their likelihood."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from torch import Tensor

from vpretrain.language.data.batch import LossMean, padded
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.feedback.gradient import CHUNK_ROWS, Sampled, chunks, split
from vpretrain.language.feedback.signals import SIGNALS, FeedbackSite, Signal
from vpretrain.language.learner.causal import CausalLearner


class Likelihood(Sampled):
    """NLL of the verified solutions' tokens.

    Args:
        samplers: as :class:`Sampled`.
        loss_mean: ``example`` is eq. 38, the mean over rows of means over the tokens of their
            solutions; ``token`` the mean over all solution tokens, in which a long solution counts
            more.
    """

    def __init__(self, samplers: Sequence[Sampler], loss_mean: LossMean = "token") -> None:
        super().__init__(samplers)
        self.loss_mean = loss_mean

    def losses(
        self, learner: CausalLearner, documents: list[Document], pad_id: int
    ) -> Iterator[Tensor]:
        tokens = sum(sum(document.predicted) for document in documents)
        for chunk in chunks(documents, CHUNK_ROWS):
            losses, row = learner.token_losses(padded(chunk, pad_id=pad_id))
            if self.loss_mean == "token":
                yield losses.sum() / tokens
            else:
                yield (losses / (row.bincount()[row] * len(documents))).sum()


@SIGNALS.declare("likelihood", "the likelihood of verified solutions (eq. 38)")
class LikelihoodSignal(Signal):
    """The likelihood of verified solutions (eq. 38)."""

    def build(self, site: FeedbackSite) -> Likelihood:
        return Likelihood(site.samplers, site.loss_mean)


def parted(
    documents: Sequence[Document],
    batches: int,
    *,
    batch_size: int,
    seed: int,
    pad_id: int,
    where: str = "data.feedback",
) -> list[Sampler]:
    """One sampler a feedback batch, over every ``batches``-th document; ``where`` is its recipe
    key, for messages."""
    return [
        Sampler(
            documents[part::batches], batch_size=batch_size, seed=seed, pad_id=pad_id, where=where
        )
        for part in range(batches)
    ]


def shuffled(documents: Sequence[Document], seed: int) -> list[Document]:
    """The same problems with the solutions of others (a control: right format, wrong labels)."""
    prompts, solutions = [list(side) for side in zip(*map(split, documents), strict=True)]
    random.Random(f"shuffled {seed}").shuffle(solutions)
    return [
        dataclasses.replace(
            document,
            ids=prompt + solution,
            predicted=[False] * len(prompt) + [True] * len(solution),
        )
        for document, prompt, solution in zip(documents, prompts, solutions, strict=True)
    ]
