"""The feedback set of language: verified solutions and the gradient of their likelihood."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import torch

from vpretrain import vectors
from vpretrain.contracts import Gradient
from vpretrain.language.learner import CausalLearner, without_dropout
from vpretrain.language.rows import Document
from vpretrain.language.stream import Sampler, padded

CHUNK_ROWS = 16
"""Feedback rows in one forward pass."""


class Likelihood:
    """Mean NLL of the verified solutions' tokens (eq. 38).

    Args:
        sampler: gives batches of feedback rows.
        batches: how many independent batches are heard at a time; their gradients are returned one by one.
    """

    def __init__(self, sampler: Sampler, batches: int) -> None:
        self.sampler, self.batches = sampler, batches

    def gradients(self, learner: CausalLearner) -> list[Gradient]:
        """``g_down`` over S, one per batch, in float32 or wider; ``.grad`` and the RNG are left alone."""
        return [self._gradient(learner, self.sampler.draw()) for _ in range(self.batches)]

    def _gradient(self, learner: CausalLearner, documents: list[Document]) -> Gradient:
        """Row chunks of a length, one after the other: little padding, little memory, the same mean over tokens."""
        documents = sorted(documents, key=lambda document: len(document.ids))
        tokens = sum(sum(document.predicted) for document in documents)
        total = {name: torch.zeros_like(vectors.wide(p.detach())) for name, p in learner.aligned.items()}
        with torch.enable_grad(), without_dropout(learner.model), learner.only_aligned():
            for start in range(0, len(documents), CHUNK_ROWS):
                chunk = padded(documents[start : start + CHUNK_ROWS], pad_id=self.sampler.pad_id)
                losses, _ = learner.token_losses(chunk)
                pieces = torch.autograd.grad(losses.sum() / tokens, list(learner.aligned.values()))
                for held, piece in zip(total.values(), pieces, strict=True):
                    held += piece
        return total


class RandomDirection:
    """Gaussian vectors in the place of ``g_down``, parameter by parameter of the same norm (a control of Table 5).

    The real feedback is computed and thrown away but for its size, so that the control costs what the method costs.

    Args:
        feedback: the real one.
        seed: of the random vectors.
        fixed: if True one vector is drawn for the whole run (the harder control: noise that always says the same),
            otherwise a fresh one for every feedback batch.
    """

    def __init__(self, feedback: Likelihood, seed: int, *, fixed: bool) -> None:
        self.feedback, self.seed, self.fixed = feedback, seed, fixed
        self.generator = torch.Generator().manual_seed(seed)

    def gradients(self, learner: CausalLearner) -> list[Gradient]:
        """Random vectors over S, one per feedback batch."""
        return [self._like(real) for real in self.feedback.gradients(learner)]

    def _like(self, real: Gradient) -> Gradient:
        if self.fixed:
            self.generator.manual_seed(self.seed)
        drawn = {}
        for name, piece in real.items():
            noise = torch.randn(piece.shape, generator=self.generator, dtype=torch.float32).to(piece)
            drawn[name] = noise * (piece.norm() / noise.norm())
        return drawn


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
