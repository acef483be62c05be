"""Verified solutions, and the gradient of their likelihood."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from torch import Tensor

from vpretrain.language.data.batch import LossMean, padded
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.feedback.gradient import Sampled, split
from vpretrain.language.feedback.passes import passes
from vpretrain.language.feedback.signals import SIGNALS, FeedbackSite, Signal
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.system.errors import user_error


class Likelihood(Sampled):
    """Feedback from the NLL of verified solutions.

    Args:
        samplers: see :class:`Sampled`.
        loss_mean: ``example`` is eq. 38, the mean over rows of the means over the tokens of their
            solutions; ``token`` is the mean over all solution tokens, in which a long solution
            counts more.
    """

    def __init__(self, samplers: Sequence[Sampler], loss_mean: LossMean = "token") -> None:
        super().__init__(samplers)
        self.loss_mean = loss_mean

    def losses(
        self, learner: CausalLearner, documents: list[Document], pad_id: int
    ) -> Iterator[Tensor]:
        # Without the first ones, which a batch never predicts.
        tokens = sum(sum(document.predicted[1:]) for document in documents)
        for chunk in passes(documents, lambda document: len(document.ids), learner.device):
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
    key: str = "batch_size",
) -> list[Sampler]:
    """One sampler per feedback batch, each over every ``batches``-th document.

    Args:
        documents: the tokenised rows.
        batches: number of parts to divide them into.
        batch_size: rows in a batch.
        seed: seed of the shuffles.
        pad_id: padding token.
        where: recipe key or argument of the documents, for messages.
        key: recipe key or argument of ``batch_size``, for messages.

    Raises:
        UserError: a part has fewer rows than a batch.
    """
    if len(documents) // batches < batch_size:
        message = too_few(len(documents), batches, batch_size, key)
        accepted = f"{batches * batch_size} rows or more"
        raise user_error(where, message, value=f"{len(documents)} rows", accepted=accepted)
    return [
        Sampler(
            documents[part::batches], batch_size=batch_size, seed=seed, pad_id=pad_id, where=where
        )
        for part in range(batches)
    ]


def too_few(rows: int, batches: int, batch_size: int, key: str) -> str:
    """The message for a feedback set that cannot fill its batches, with both fixes.

    ``key`` is the recipe key or argument of ``batch_size``."""
    part = rows // batches
    parts = (
        f"{rows} rows make {batches} parts of {part}" if batches > 1 else f"there are {rows} rows"
    )
    smaller = f", or {key} <= {part}" if part else ""
    return f"{parts}, and a batch takes {batch_size}; give {batches * batch_size}{smaller}"


def shuffled(documents: Sequence[Document], seed: int) -> list[Document]:
    """The documents with their solutions permuted (a control: right format, wrong labels).

    None becomes longer than the longest was; more is cut at its end.
    """
    longest = max((len(document.ids) for document in documents), default=0)
    prompts = [split(document)[0] for document in documents]
    solutions = [
        (list(document.ids[cut:]), [*map(bool, document.predicted[cut:])])
        for document, cut in zip(documents, map(len, prompts), strict=True)
    ]
    random.Random(f"shuffled {seed}").shuffle(solutions)
    return [
        dataclasses.replace(
            document,
            ids=(prompt + solution)[:longest],
            predicted=([False] * len(prompt) + predicted)[:longest],
        )
        for document, prompt, (solution, predicted) in zip(
            documents, prompts, solutions, strict=True
        )
    ]
