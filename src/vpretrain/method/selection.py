"""Data selection: more of the stream is drawn than is trained on, and a selector chooses.

Selection precedes task design: a selector decides which of the drawn data a step uses, a designer
what to predict on them. What is drawn from the stream does not depend on the choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic

from vpretrain.method.roles import BatchT, ContextT, DirectedValue, Metrics, State, Stream


@dataclass(frozen=True)
class Selected(Generic[BatchT]):
    """The result of a selection.

    Args:
        batches: one for every ``draws`` drawn batches, of their average size.
        metrics: figures that describe the choice; with ``gain`` if it was cross-fitted over
            feedback batches.
    """

    batches: tuple[BatchT, ...]
    metrics: Metrics = field(default_factory=dict)


class Selector(ABC, Generic[BatchT, ContextT]):
    """Chooses the data of a step.

    Attributes:
        draws: number of batches drawn per batch trained on, at least 1.
    """

    draws: int

    def check(self, stream: Stream[BatchT]) -> None:
        """Rejects a stream that offers no choice, when a run is assembled.

        Raises:
            UserError: the stream offers no choice.
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
        """Chooses among batches; all processes choose together and make the same choice.

        Args:
            drawn: this process's shard of a multiple of :attr:`draws` batches.
            value_of: values tasks along the latest feedback: at a meta step along the gradient of
                every feedback batch, at other steps along their mean.
            meta_step: whether this is a meta step.
            used: whether the choice is trained on. At a meta step a choice is made even while
                steering is off, for its ``gain`` alone: nothing of it is then counted or used up.
        """

    def state_dict(self) -> State:
        """Returns the state that later choices depend on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`; the choices that follow are the same, bit for bit."""
