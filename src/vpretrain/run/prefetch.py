"""Prefetching: the CPU draws the next batches while the accelerator runs a step.

It does not change the results.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic

from vpretrain.method.accumulation import MicroBatches, next_batches
from vpretrain.method.roles import BatchT, State, Stream


class Prefetcher(Stream[MicroBatches[BatchT]], Generic[BatchT]):
    """Yields the batches of each step; a thread draws the next ones while the learner trains.

    Its state is that of the stream before the waiting batches, so that a resumed run draws them
    again.

    Args:
        stream: used by nothing else; must not draw from global random number generators.
        count: batches per step.
    """

    def __init__(self, stream: Stream[BatchT], count: int) -> None:
        self.stream, self.count = stream, count
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vpretrain-stream")
        self._waiting: Future[MicroBatches[BatchT]] | None = None
        self._state: State = {}

    def __iter__(self) -> Iterator[MicroBatches[BatchT]]:
        return self

    def __next__(self) -> MicroBatches[BatchT]:
        batches = (
            next_batches(self.stream, self.count)
            if self._waiting is None
            else self._waiting.result()
        )
        self._state = copy.deepcopy(self.stream.state_dict())
        self._waiting = self._thread.submit(next_batches, self.stream, self.count)
        return batches

    def state_dict(self) -> State:
        return self.stream.state_dict() if self._waiting is None else self._state

    def load_state_dict(self, state: State) -> None:
        if self._waiting is not None:
            wait([self._waiting])
            self._waiting = None
        self.stream.load_state_dict(state)

    def close(self) -> None:
        """Ends the thread, and rewinds the stream to just after the last batches handed out."""
        self.load_state_dict(self.state_dict())
        self._thread.shutdown()
