"""Verified solutions, and the gradient of their likelihood."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from torch import Tensor

from vpretrain.language.data.batch import LossMean, padded
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.feedback.gradient import CHUNK_ROWS, Sampled, chunks, split, summed_gradient
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.method.roles import Gradient


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

    def gradient(self, learner: CausalLearner, documents: list[Document], pad_id: int) -> Gradient:
        """Row chunks of a length, one after the other: little padding, little memory, the same
        mean.
        """
        documents = sorted(documents, key=lambda document: len(document.ids))
        tokens = sum(sum(document.predicted) for document in documents)

        def pieces() -> Iterator[Tensor]:
            for chunk in chunks(documents, CHUNK_ROWS):
                losses, row = learner.token_losses(padded(chunk, pad_id=pad_id))
                if self.loss_mean == "token":
                    yield losses.sum() / tokens
                else:
                    yield (losses / (row.bincount()[row] * len(documents))).sum()

        return summed_gradient(learner, pieces())


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
    key, for messages.
    """
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
