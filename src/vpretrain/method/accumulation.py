"""Several batches as one learner step, where memory does not hold them at a time."""

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
    """One batch of a step.

    Args:
        batch: this process's share of it.
        fraction: what its mean loss counts in the loss of the step; fractions sum to 1 over parts
            and processes.
        fraction_of_batch: what it counts in the loss of its own batch; 1 for a process on its own.
    """

    batch: BatchT
    fraction: float
    fraction_of_batch: float


@dataclass(frozen=True)
class MicroBatches(Generic[BatchT]):
    """Batches whose losses are added up before the optimizer moves.

    The step is that of one large batch: each loss counts by the ``weight`` of its batch, what it is
    a mean over. Under data parallelism every process has as many.

    Args:
        batches: in the order they were drawn, at least one.
    """

    batches: tuple[BatchT, ...]

    @cached_property
    def _totals(self) -> list[list[float]]:
        """Tokens and weight of each batch, over all processes."""
        here = [[batch.tokens, batch.weight] for batch in self._sized]
        return distributed.total(torch.tensor(here, dtype=torch.float64)).tolist()

    @property
    def _sized(self) -> tuple[Batch, ...]:
        return self.batches  # type: ignore[return-value]  # a batch of any learner is a Batch

    @property
    def tokens(self) -> int:
        """Tokens (images) of all, over all processes."""
        return round(sum(tokens for tokens, _ in self._totals))

    def weighted(self) -> list[Part[BatchT]]:
        """Every batch with what it counts."""
        if len(self.batches) == distributed.world() == 1:
            return [Part(self.batches[0], 1.0, 1.0)]
        of_step = sum(weight for _, weight in self._totals) or 1
        parts = []
        for batch, sized, (_, whole) in zip(self.batches, self._sized, self._totals, strict=True):
            fraction_of_batch = sized.weight / (whole or 1) if distributed.world() > 1 else 1.0
            parts.append(Part(batch, sized.weight / of_step, fraction_of_batch))
        return parts

    def digest(self) -> str:
        """Proof of what was drawn (by this process); that of the batch itself where it is one."""
        digests = [batch.digest() for batch in self._sized]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def next_batches(stream: Iterator[BatchT], count: int) -> MicroBatches[BatchT]:
    """The next batches of a stream."""
    return MicroBatches(tuple(next(stream) for _ in range(count)))
