"""Estimators in the course of a run: which way of :mod:`vpretrain.method.directional`, along which
step, and how exact it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vpretrain.method import vectors
from vpretrain.method.directional import (
    ESTIMATORS,
    EstimatorUnsupported,
    Function,
    Here,
    Loss,
    central_difference,
    forward_mode,
    one_sided_difference,
)
from vpretrain.method.roles import Estimate, Gradient, Metrics, State
from vpretrain.system import distributed
from vpretrain.system.memory import out_of_memory

log = logging.getLogger(__name__)

Given = tuple[Loss, Mapping[str, Tensor], Gradient, Sequence[Tensor]]
"""What every estimator takes: loss, point S, direction and controls."""


class Estimator:
    """An estimator in the course of a run; this one is exact, and has nothing to remember.

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
    ) -> Estimate:
        """See the module.

        Args:
            loss: of S.
            parameters: the point S.
            direction: u.
            controls: what the loss closed over.
            here: the loss at S where it is known anyway, which :class:`OneSidedDifference` reads.
        """
        return self.function(loss, parameters, direction, controls)

    def metrics(self) -> Metrics:
        """How exact it is."""
        return {}

    def state_dict(self) -> State:
        """What the next estimates depend on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""


LADDER = {
    torch.float32: (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6),
    torch.float64: (1e-3, 1e-4, 1e-5, 1e-6),
}
"""Relative steps that are tried, by dtype of S."""
CHECK_PERIOD = 400
"""Estimates from one check of the step to the next: one estimate more in 400, below 1%."""
WARN_ABOVE, LEAVE_ABOVE = 0.01, 0.05


class CentralDifference(Estimator):
    """Central differences along a step that is measured, since no fixed one serves every model.

    A direction that lies in a few coordinates of a pretrained model wants a step a hundred times
    smaller than one that lies in all of them. At the first estimate the steps of :data:`LADDER` are
    compared with their neighbours: too large a step differs by its curvature, too small a one by
    rounding, and the step in between that differs least is kept. The difference is the estimate of
    its error. It is measured again every :data:`CHECK_PERIOD` estimates.

    Above an error of 1% the ladder is climbed again and a warning logged; above 5% the estimator in
    ``otherwise`` takes over for the rest of the run.

    Args:
        otherwise: where no step is good enough; None: the best of them stays.
    """

    def __init__(self, otherwise: Function | None = forward_mode) -> None:
        super().__init__(central_difference)
        self.otherwise = otherwise
        self.step, self.error, self.calls, self.left = 0.0, 0.0, 0, False

    def __call__(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
        here: Here | None = None,
    ) -> Estimate:
        """See the module."""
        given = loss, parameters, direction, controls
        if self.left and self.otherwise is not None:
            return self.otherwise(*given)
        if not float(vectors.norm(direction)):  # no step can be measured along nothing
            return central_difference(*given)

        def at(step: float) -> Estimate:
            return self.difference(given, here, step)

        due, estimate = not self.step or self.calls % CHECK_PERIOD == 0, None
        if due and self.step:
            estimate = self._checked(at)
        if due and estimate is None:
            self._climb(at, LADDER[next(iter(parameters.values())).dtype])
            if self.error > WARN_ABOVE and self.give_way(given):
                return self(*given, here)
        self.calls += 1
        return at(self.step) if estimate is None else estimate

    def difference(self, given: Given, here: Here | None, step: float) -> Estimate:
        """The quotient at a relative step."""
        return central_difference(*given, step)

    def give_way(self, given: Given) -> bool:
        """Warns that no step is good enough, and takes another way from now on where there is one;
        whether it does."""
        if distributed.rank() == 0:
            log.warning(
                "central differences are about %.1f%% off on this model, whatever the step; "
                "`vpretrain doctor` says which estimator is exact on it",
                100 * self.error,
            )
        return self.error > LEAVE_ABOVE and self._leave(given)

    def _checked(self, at: Callable[[float], Estimate]) -> Estimate | None:
        """The estimate at the step in use, checked against a smaller one; None: it is not good."""
        estimate = at(self.step)
        self.error = _difference(estimate, at(self.step / 3))
        return estimate if self.error <= WARN_ABOVE else None

    def _climb(self, at: Callable[[float], Estimate], ladder: Sequence[float]) -> None:
        """Keeps the step that differs least from the next smaller one."""
        estimates = [at(step) for step in ladder]
        errors = [_difference(one, next_) for one, next_ in pairwise(estimates)]
        best = min(range(len(errors)), key=errors.__getitem__)
        self.step, self.error = ladder[best], errors[best]
        if not math.isfinite(self.error):  # a broken batch says nothing: measure on the next
            self.step = self.error = 0.0

    def _leave(self, given: Given) -> bool:
        """Goes over to the other estimator, where that works on this model and in the memory there
        is, on all processes; whether it did."""
        if self.otherwise is None:
            return False
        works = True
        try:
            self.otherwise(*given)
        except (EstimatorUnsupported, RuntimeError, MemoryError) as error:
            if not (isinstance(error, EstimatorUnsupported) or out_of_memory(error)):
                raise
            works = False
        if any(distributed.any_rank(not works)):
            return False
        if distributed.rank() == 0:
            log.warning("from here on values are taken by %s", self.otherwise.__name__)
        self.left = True
        return True

    def metrics(self) -> Metrics:
        """``estimator_error``, relative, of the latest check."""
        return {"estimator_error": self.error} if self.step and not self.left else {}

    def state_dict(self) -> State:
        return {
            "step": self.step,
            "error": self.error,
            "calls": self.calls,
            "left": self.left,
        }

    def load_state_dict(self, state: State) -> None:
        self.step, self.error = float(state["step"]), float(state["error"])
        self.calls, self.left = int(state["calls"]), bool(state["left"])


class OneSidedDifference(CentralDifference):
    """One-sided differences, along a step that is measured and checked likewise.

    The other side is the learner's own pass, so that a value takes half the passes of the suffix.
    From the first value that has no such pass on (learned views, narrow dtypes, dropout), or where
    the best step is more than 1% off, differences are central.
    """

    def __init__(self, otherwise: Function | None = forward_mode) -> None:
        super().__init__(otherwise)
        self.name, self.central = "one_sided_difference", False

    def __call__(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
        here: Here | None = None,
    ) -> Estimate:
        if here is None and not self.central:  # a step measured for one kind is not the other's
            self.central, self.step = True, 0.0
        return super().__call__(loss, parameters, direction, controls, here)

    def difference(self, given: Given, here: Here | None, step: float) -> Estimate:
        if here is None or self.central:
            return super().difference(given, here, step)
        return one_sided_difference(*given, here, step)

    def give_way(self, given: Given) -> bool:
        if self.central:
            return super().give_way(given)
        log.info("one-sided differences are %.1f%% off: central from here on", 100 * self.error)
        self.central, self.step = True, 0.0
        return True

    def state_dict(self) -> State:
        return super().state_dict() | {"central": self.central}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.central = bool(state["central"])


def _difference(a: Estimate, b: Estimate) -> float:
    """Norm of the difference of two gradients over that of the second, on all processes; infinite
    where one is not finite or the second alone is zero."""
    pairs = zip(a.gradient, b.gradient, strict=True)
    squares = [((x - y).double().square().sum(), y.double().square().sum()) for x, y in pairs]
    apart, size = distributed.total(
        torch.stack([torch.stack(list(each)) for each in squares]).sum(0)
    )
    error = float((apart / size).sqrt()) if apart else 0.0
    return error if math.isfinite(error) else math.inf


NAMES = (*ESTIMATORS, "one_sided_difference")
"""What a recipe can ask for."""


def estimator(name: str) -> Estimator:
    """A fresh estimator for one run, by the recipe's name of it."""
    if name == "central_difference":
        return CentralDifference()
    if name == "one_sided_difference":
        return OneSidedDifference()
    return Estimator(ESTIMATORS[name])
