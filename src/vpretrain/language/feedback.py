"""The feedback set of language: verified solutions and the gradient of their likelihood."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import torch

from vpretrain import vectors
from vpretrain.contracts import Gradient
from vpretrain.language.learner import CausalLearner
from vpretrain.language.rows import Document
from vpretrain.language.stream import Sampler, padded
from vpretrain.modes import evaluating, frozen

CHUNK_ROWS = 16
"""Feedback rows in one forward pass."""


class Likelihood:
    """Mean NLL of the verified solutions' tokens (eq. 38).

    Args:
        samplers: one batch of each is heard at a time; their gradients are returned one by one. They share no rows (see
            :func:`parted`), so that their agreement is never that of the same rows heard twice.
    """

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self.samplers = samplers

    def gradients(self, learner: CausalLearner) -> list[Gradient]:
        """``g_down`` over S, one per sampler, in float32 or wider; ``.grad`` and the RNG are left alone."""
        return [self._gradient(learner, sampler.draw(), sampler.pad_id) for sampler in self.samplers]

    def _gradient(self, learner: CausalLearner, documents: list[Document], pad_id: int) -> Gradient:
        """Row chunks of a length, one after the other: little padding, little memory, the same mean over tokens."""
        documents = sorted(documents, key=lambda document: len(document.ids))
        tokens = sum(sum(document.predicted) for document in documents)
        total = {name: torch.zeros_like(vectors.wide(p.detach())) for name, p in learner.aligned.items()}
        members = {id(parameter) for parameter in learner.aligned.values()}
        others = [p for p in learner.model.parameters() if id(p) not in members]  # blocks below S keep no activations
        with torch.enable_grad(), evaluating(learner.model), frozen(others):
            for start in range(0, len(documents), CHUNK_ROWS):
                chunk = padded(documents[start : start + CHUNK_ROWS], pad_id=pad_id)
                losses, _ = learner.token_losses(chunk)
                pieces = torch.autograd.grad(losses.sum() / tokens, list(learner.aligned.values()))
                for held, piece in zip(total.values(), pieces, strict=True):
                    held += piece
        return total


def parted(documents: Sequence[Document], batches: int, *, batch_size: int, seed: int, pad_id: int) -> list[Sampler]:
    """One sampler a feedback batch, over every ``batches``-th document."""
    return [
        Sampler(documents[part::batches], batch_size=batch_size, seed=seed, pad_id=pad_id) for part in range(batches)
    ]


def shuffled(documents: Sequence[Document], seed: int) -> list[Document]:
    """The same problems with the solutions of others (a control: right format, wrong labels)."""
    cuts = [document.predicted.index(True) for document in documents]
    solutions = [document.ids[cut:] for document, cut in zip(documents, cuts, strict=True)]
    random.Random(f"shuffled {seed}").shuffle(solutions)
    return [
        dataclasses.replace(
            document, ids=document.ids[:cut] + solution, predicted=[False] * cut + [True] * len(solution)
        )
        for document, cut, solution in zip(documents, cuts, solutions, strict=True)
    ]
