"""Gradient accumulation: several batches that make up one learner step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Generic

import torch

from vpretrain.method.roles import Batch, BatchT
from vpretrain.system import distributed


@dataclass(frozen=True)
class Part(Generic[BatchT]):
    """One batch of a step, with its weight in the loss.

    Args:
        batch: this process's shard of the batch.
        fraction: weight of its mean loss in the loss of the step. The fractions of all parts on all
            processes sum to 1.
        fraction_of_batch: weight of its mean loss in the loss of its own batch; 1 on a single
            process.
    """

    batch: BatchT
    fraction: float
    fraction_of_batch: float


@dataclass(frozen=True)
class MicroBatches(Generic[BatchT]):
    """Batches whose gradients are accumulated into one optimizer step.

    The step equals that of one large batch: each loss is weighted by the ``weight`` of its batch,
    the size that the loss is a mean over. Under data parallelism every process holds the same
    number of batches.

    Args:
        batches: in the order they were drawn, at least one.
    """

    batches: tuple[BatchT, ...]

    @cached_property
    def _totals(self) -> list[list[float]]:
        """``[tokens, weight]`` of each batch, summed over all processes."""
        here = [[batch.tokens, batch.weight] for batch in self._sized]
        return distributed.total(torch.tensor(here, dtype=torch.float64)).tolist()

    @property
    def _sized(self) -> tuple[Batch, ...]:
        return self.batches  # type: ignore[return-value]  # a batch of any learner is a Batch

    @property
    def tokens(self) -> int:
        """Number of tokens (images) in all batches, over all processes."""
        return round(sum(tokens for tokens, _ in self._totals))

    def weighted(self) -> list[Part[BatchT]]:
        """Returns every batch with its weights in the loss."""
        if len(self.batches) == distributed.world() == 1:
            return [Part(self.batches[0], 1.0, 1.0)]
        of_step = sum(weight for _, weight in self._totals) or 1
        parts = []
        for batch, sized, (_, whole) in zip(self.batches, self._sized, self._totals, strict=True):
            fraction_of_batch = sized.weight / (whole or 1) if distributed.world() > 1 else 1.0
            parts.append(Part(batch, sized.weight / of_step, fraction_of_batch))
        return parts

    def digest(self) -> str:
        """Returns a hash of the data that this process drew.

        For a single batch it is the batch's own digest.
        """
        digests = [batch.digest() for batch in self._sized]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def next_batches(stream: Iterator[BatchT], count: int) -> MicroBatches[BatchT]:
    """Draws the next ``count`` batches of a stream."""
    return MicroBatches(tuple(next(stream) for _ in range(count)))
