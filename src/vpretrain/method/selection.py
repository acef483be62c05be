"""Selection: what is trained on is chosen among more of the stream than a step takes.

It stands before the task: a selector says which of the drawn data a step is taken on, a designer
what is asked of them. The stream is drawn the same whatever is chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic

from vpretrain.method.roles import BatchT, ContextT, DirectedValue, Metrics, State, Stream


@dataclass(frozen=True)
class Selected(Generic[BatchT]):
    """What a selector chose.

    Args:
        batches: one for every ``draws`` that were drawn, of the size that these have on average.
        metrics: how the choice looks; ``gain`` where it was cross-fitted over feedback batches.
    """

    batches: tuple[BatchT, ...]
    metrics: Metrics = field(default_factory=dict)


class Selector(ABC, Generic[BatchT, ContextT]):
    """Chooses what a step is taken on.

    Attributes:
        draws: batches that are drawn for one that is trained on, at least 1.
    """

    draws: int

    def check(self, stream: Stream[BatchT]) -> None:
        """Refuses a stream that there is nothing to choose from, when a run is put together.

        Raises:
            UserError: with what is wrong.
        """

    @abstractmethod
    def select(
        self,
        drawn: Sequence[BatchT],
        value_of: DirectedValue[ContextT],
        *,
        meta_step: bool,
        used: bool,
    ) -> Selected[BatchT]:
        """Chooses among batches; all processes choose together, and alike.

        Args:
            drawn: this process's share of a multiple of :attr:`draws` batches.
            value_of: values tasks along the latest feedback. At a meta step it knows the gradient
                of every feedback batch, at other steps their mean.
            meta_step: whether this is one.
            used: whether the choice is trained on. At a meta step it is made even while nothing
                steers, for its ``gain`` alone: then nothing is used up by it or counted.
        """

    def state_dict(self) -> State:
        """What later choices depend on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`; the choices that follow are the same, bit for bit."""
