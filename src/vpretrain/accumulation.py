"""Several batches as one learner step, where memory does not hold them at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MicroBatches:
    """Batches whose losses are added up before the optimizer moves.

    The step is that of one large batch: each loss counts by the ``weight`` of its batch, what it is a mean over.

    Args:
        parts: in the order they were drawn, at least one.
    """

    parts: tuple[Any, ...]

    @property
    def tokens(self) -> int:
        """Tokens (images) of all."""
        return sum(part.tokens for part in self.parts)

    @property
    def shares(self) -> list[float]:
        """Of each batch, in the loss; they sum to 1."""
        if len(self.parts) == 1:
            return [1.0]
        total = sum(part.weight for part in self.parts) or 1
        return [part.weight / total for part in self.parts]

    def digest(self) -> str:
        """Proof of what was drawn; that of the batch itself where it is one."""
        digests = [part.digest() for part in self.parts]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def drawn(stream: Iterator[Any], count: int) -> MicroBatches:
    """The next batches of a stream."""
    return MicroBatches(tuple(next(stream) for _ in range(count)))
