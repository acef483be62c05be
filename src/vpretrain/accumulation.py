"""Several batches as one learner step, where memory does not hold them at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from vpretrain import distributed


@dataclass(frozen=True)
class MicroBatches:
    """Batches whose losses are added up before the optimizer moves.

    The step is that of one large batch: each loss counts by the ``weight`` of its batch, what it is a mean over. Under data
    parallelism a part is this process's share of a batch, and every process has as many.

    Args:
        parts: in the order they were drawn, at least one.
    """

    parts: tuple[Any, ...]

    @cached_property
    def _everywhere(self) -> list[list[float]]:
        """Tokens and weight of each batch, over all processes."""
        here = [[part.tokens, part.weight] for part in self.parts]
        return distributed.total(torch.tensor(here, dtype=torch.float64)).tolist()

    @property
    def tokens(self) -> int:
        """Tokens (images) of all, over all processes."""
        return round(sum(tokens for tokens, _ in self._everywhere))

    @property
    def shares(self) -> list[float]:
        """Of each part, in the loss of the step; they sum to 1 over parts and processes."""
        if len(self.parts) == distributed.world() == 1:
            return [1.0]
        total = sum(weight for _, weight in self._everywhere) or 1
        return [part.weight / total for part in self.parts]

    @property
    def shares_of_batch(self) -> list[float]:
        """Of each part, in the loss of its batch; 1 for a process on its own."""
        if distributed.world() == 1:
            return [1.0] * len(self.parts)
        return [part.weight / (whole or 1) for part, (_, whole) in zip(self.parts, self._everywhere, strict=True)]

    def digest(self) -> str:
        """Proof of what was drawn (by this process); that of the batch itself where it is one."""
        digests = [part.digest() for part in self.parts]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def drawn(stream: Iterator[Any], count: int) -> MicroBatches:
    """The next batches of a stream."""
    return MicroBatches(tuple(next(stream) for _ in range(count)))
