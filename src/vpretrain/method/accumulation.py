"""Several batches as one learner step, where memory does not hold them at a time."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from vpretrain.system import distributed


@dataclass(frozen=True)
class MicroBatches:
    """Batches whose losses are added up before the optimizer moves.

    The step is that of one large batch: each loss counts by the ``weight`` of its batch, what it is
    a mean over. Under data parallelism a part is this process's share of a batch, and every process
    has as many.

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
    def fractions(self) -> list[float]:
        """Of each part, in the loss of the step; they sum to 1 over parts and processes."""
        if len(self.parts) == distributed.world() == 1:
            return [1.0]
        total = sum(weight for _, weight in self._everywhere) or 1
        return [part.weight / total for part in self.parts]

    @property
    def fractions_of_batch(self) -> list[float]:
        """Of each part, in the loss of its batch; 1 for a process on its own."""
        if distributed.world() == 1:
            return [1.0] * len(self.parts)
        return [
            part.weight / (whole or 1)
            for part, (_, whole) in zip(self.parts, self._everywhere, strict=True)
        ]

    def digest(self) -> str:
        """Proof of what was drawn (by this process); that of the batch itself where it is one."""
        digests = [part.digest() for part in self.parts]
        return (
            digests[0]
            if len(digests) == 1
            else hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        )


def next_batches(stream: Iterator[Any], count: int) -> MicroBatches:
    """The next batches of a stream."""
    return MicroBatches(tuple(next(stream) for _ in range(count)))


class Prefetcher:
    """The steps of a stream, the next one drawn by a thread while the learner is at this one.

    Its state is that of the stream before what waits: a run that goes on from there draws it again.

    Args:
        stream: used by nobody else; it draws from no global random numbers.
        count: batches a step.
    """

    def __init__(self, stream: Any, count: int) -> None:
        self.stream, self.count = stream, count
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vpretrain-stream")
        self._waiting: Future[MicroBatches] | None = None
        self._state: Any = None

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> MicroBatches:
        found = (
            next_batches(self.stream, self.count)
            if self._waiting is None
            else self._waiting.result()
        )
        self._state = copy.deepcopy(self.stream.state_dict())
        self._waiting = self._thread.submit(next_batches, self.stream, self.count)
        return found

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict() if self._waiting is None else self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._waiting is not None:
            wait([self._waiting])
            self._waiting = None
        self.stream.load_state_dict(state)

    def close(self) -> None:
        """Ends the thread, and leaves the stream where the step that was handed out last
        left it.
        """
        self.load_state_dict(self.state_dict())
        self._thread.shutdown()
