"""Value estimators over a run, by the names that recipes give them.

The derivatives themselves are computed by :mod:`vpretrain.method.directional`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.directional import (
    ESTIMATORS,
    Function,
    Here,
    Loss,
    central_difference,
    forward_mode,
)
from vpretrain.method.roles import Estimate, Gradient, Metrics, State
from vpretrain.method.ways import Asked, Central, Exact, Narrow, OneSided, Way


class Estimator:
    """A value estimator over a run. This base class is exact and stateless.

    Args:
        function: one of :data:`ESTIMATORS`.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
        here: Here | None = None,
        narrow: Loss | None = None,
    ) -> Estimate:
        """Estimates value and gradient, see :mod:`vpretrain.method.directional`.

        Args:
            loss: a function of S.
            parameters: the point S.
            direction: u.
            controls: the tensors that the loss closes over.
            here: returns the loss at S if it is known anyway.
            narrow: ``loss`` in the narrow dtype that the learner trains in, if it does; this and
                ``here`` are read by :func:`one_sided` only.
        """
        return self.function(loss, parameters, direction, controls)

    def metrics(self) -> Metrics:
        """Returns the estimator's measured error, if it has one."""
        return {}

    def state_dict(self) -> State:
        """Returns the state that later estimates depend on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""


class InTurn(Estimator):
    """Several ways, of which the first that serves is taken.

    Args:
        name: in recipes.
        ways: in the order in which they are tried; the last one always serves.

    Attributes:
        way: the one that the run has come to.
    """

    def __init__(self, name: str, *ways: Way) -> None:
        self.name, self.ways, self.way = name, ways, ways[0]

    def __call__(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
        here: Here | None = None,
        narrow: Loss | None = None,
    ) -> Estimate:
        asked = Asked(loss, parameters, direction, controls, here, narrow)
        if not float(vectors.norm(direction)):  # nothing can be measured along it
            return central_difference(*asked.arguments)
        for way in self.ways[self.ways.index(self.way) :]:
            self.way = way
            if (estimate := way.estimate(asked)) is not None:
                return estimate
        raise AssertionError("the last way always serves")

    def metrics(self) -> Metrics:
        """Returns ``estimator_error``: the relative error at the latest check."""
        return {"estimator_error": self.way.step.error} if self.way.step.size else {}

    def state_dict(self) -> State:
        return {"way": self.way.name, **vars(self.way.step)}

    def load_state_dict(self, state: State) -> None:
        by_name = {way.name: way for way in self.ways}
        if state.get("way") in by_name:  # else of another version: measured again
            self.way = by_name[state["way"]]
            step = self.way.step
            step.size, step.error = float(state["size"]), float(state["error"])
            step.calls = int(state["calls"])


def central(fallback: Function | None = forward_mode) -> InTurn:
    """Returns central differences with their fallback."""
    rest = [] if fallback is None else [Exact(fallback)]
    return InTurn("central_difference", Central(fallback), *rest)


def one_sided() -> InTurn:
    """Returns the cheapest accurate way beside the learner's own pass.

    For a learner that computes in float32 these are one-sided differences, in a narrow dtype
    forward mode in that dtype, and else central differences.
    """
    rest = Central(forward_mode), Exact(forward_mode)
    return InTurn("one_sided_difference", OneSided(), Narrow(), *rest)


NAMES = (*ESTIMATORS, "one_sided_difference")
"""Every name that :func:`estimator` takes."""


def estimator(name: str) -> Estimator:
    """Returns a new estimator for one run, by its name in the recipe."""
    if name == "central_difference":
        return central()
    if name == "one_sided_difference":
        return one_sided()
    return Estimator(ESTIMATORS[name])
