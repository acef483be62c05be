"""Stateful value estimators: they choose, check and checkpoint the step size over a run.

The derivatives themselves are computed by :mod:`vpretrain.method.directional`.
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

Arguments = tuple[Loss, Mapping[str, Tensor], Gradient, Sequence[Tensor]]
"""Arguments of every estimator: loss, point S, direction and controls."""


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
                ``here`` are read by :class:`OneSidedDifference` only.
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


LADDER = {
    torch.float32: (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6),
    torch.float64: (1e-3, 1e-4, 1e-5, 1e-6),
}
"""Relative steps to try, by dtype of S."""
CHECK_PERIOD = 400
"""Number of estimates between two checks of the step. A check costs one extra estimate, below
1%.
"""
WARN_ABOVE, LEAVE_ABOVE, NARROW_LEAVE_ABOVE = 0.01, 0.05, 0.02


class CentralDifference(Estimator):
    """Central differences with a measured step size, since no fixed step suits every model.

    A direction that lies in a few coordinates of a pretrained model needs a step a hundred times
    smaller than one that lies in all of them. At the first estimate the steps of :data:`LADDER` are
    compared with their neighbours: too large a step differs by curvature, too small a one by
    rounding. The step that differs least is kept, and the difference is the estimate of its error.
    The error is measured again every :data:`CHECK_PERIOD` estimates.

    If the error exceeds 1%, the whole ladder is tried again. If the best step is still off by more
    than 1%, a warning is logged; by more than 5%, the estimator in ``fallback`` takes over for the
    rest of the run, provided that it works on this model and fits in memory.

    Args:
        fallback: the estimator to fall back on; None: the best step is kept whatever its error.
    """

    def __init__(self, fallback: Function | None = forward_mode) -> None:
        super().__init__(central_difference)
        self.fallback = fallback
        self.step, self.error, self.calls, self.uses_fallback = 0.0, 0.0, 0, False

    def __call__(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
        here: Here | None = None,
        narrow: Loss | None = None,
    ) -> Estimate:
        """Estimates value and gradient; measures or checks the step when that is due."""
        arguments = loss, parameters, direction, controls
        if self.uses_fallback and self.fallback is not None:
            return self.fallback(*arguments)
        if not float(vectors.norm(direction)):  # no step can be measured along a zero direction
            return central_difference(*arguments)

        def at(step: float) -> Estimate:
            return self.difference(arguments, here, step)

        due = not self.step or self.calls % CHECK_PERIOD == 0
        estimate = self._check_step(at) if due and self.step else None
        if due and estimate is None:
            self._measure_step(at, LADDER[next(iter(parameters.values())).dtype])
            if self.error > WARN_ABOVE and self.replace_inaccurate(arguments):
                return self(*arguments, here)
        self.calls += 1
        return at(self.step) if estimate is None else estimate

    def difference(self, arguments: Arguments, here: Here | None, step: float) -> Estimate:
        """Returns the difference quotient at a relative step."""
        return central_difference(*arguments, step)

    def replace_inaccurate(self, arguments: Arguments) -> bool:
        """Warns that no step is accurate, and switches to the fallback if the error is above 5%.

        Returns whether later estimates are taken another way.
        """
        if distributed.rank() == 0:
            log.warning(
                "central differences are about %.1f%% off on this model, whatever the step; "
                "`vpretrain doctor` says which estimator is exact on it",
                100 * self.error,
            )
        return self.error > LEAVE_ABOVE and self._use_fallback(arguments)

    def _check_step(self, at: Callable[[float], Estimate]) -> Estimate | None:
        """Returns the estimate at the current step; None if a smaller step is more than 1% off."""
        estimate = at(self.step)
        self.error = _difference(estimate, at(self.step / 3))
        return estimate if self.error <= WARN_ABOVE else None

    def _measure_step(self, at: Callable[[float], Estimate], ladder: Sequence[float]) -> None:
        """Keeps the step whose estimate differs least from that of the next smaller one."""
        estimates = [at(step) for step in ladder]
        errors = [_difference(one, next_) for one, next_ in pairwise(estimates)]
        best = min(range(len(errors)), key=errors.__getitem__)
        self.step, self.error = ladder[best], errors[best]
        if not math.isfinite(self.error):  # a broken batch: measure on the next one instead
            self.step = self.error = 0.0

    def _use_fallback(self, arguments: Arguments) -> bool:
        """Switches to the fallback if it works on this model, and fits in memory, on all processes.

        Returns whether it did.
        """
        if self.fallback is None:
            return False
        estimate, _ = _attempted(self.fallback, arguments)
        if any(distributed.any_rank(estimate is None)):
            return False
        if distributed.rank() == 0:
            log.warning("from here on values are taken by %s", self.fallback.__name__)
        self.uses_fallback = True
        return True

    def metrics(self) -> Metrics:
        """Returns ``estimator_error``: the relative error at the latest check."""
        return {"estimator_error": self.error} if self.step and not self.uses_fallback else {}

    def state_dict(self) -> State:
        return {
            "step": self.step,
            "error": self.error,
            "calls": self.calls,
            "left": self.uses_fallback,
        }

    def load_state_dict(self, state: State) -> None:
        self.step, self.error = float(state["step"]), float(state["error"])
        self.calls, self.uses_fallback = int(state["calls"]), bool(state["left"])


class OneSidedDifference(CentralDifference):
    """The cheapest accurate estimate beside the learner's own pass, checked as in
    :class:`CentralDifference`.

    * A learner that computes in float32: one-sided differences with a measured step. The
      unperturbed side is the learner's own pass, so a value takes half as many passes of the
      suffix.
    * A learner that computes in a narrow dtype: forward mode in that dtype, which takes no
      difference of close numbers, so that rounding costs it some thousandths. It is checked against
      central differences in float32.

    Values are central differences, for the rest of the run, from the first value that has neither
    (learned views, dropout), or if the error is above 1% (2% in a narrow dtype).
    """

    def __init__(self) -> None:
        super().__init__()
        self.name, self.central = "one_sided_difference", False

    def __call__(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
        here: Here | None = None,
        narrow: Loss | None = None,
    ) -> Estimate:
        arguments = loss, parameters, direction, controls
        if here is None and narrow is not None and not self.central:
            estimate = self._narrow_estimate(narrow, arguments)
            if estimate is not None:
                return estimate
        # A step measured for one-sided differences does not suit central ones.
        if here is None and not self.central:
            self.central, self.step = True, 0.0
        return super().__call__(*arguments, here)

    def difference(self, arguments: Arguments, here: Here | None, step: float) -> Estimate:
        if here is None or self.central:
            return super().difference(arguments, here, step)
        return one_sided_difference(*arguments, here, step)

    def _narrow_estimate(self, narrow: Loss, arguments: Arguments) -> Estimate | None:
        """Returns the estimate by forward mode in the learner's dtype; None if it does not serve.

        That is decided by all processes when a check is due. Later a batch that it cannot value is
        valued by a central difference, and not checked.
        """
        _, _, direction, _ = arguments
        estimate, reason = _attempted(forward_mode, (narrow, *arguments[1:]))
        if self.calls % CHECK_PERIOD == 0:
            missing = any(distributed.any_rank(estimate is None))
            if missing and not self.step:
                return _central_instead(reason or "another process cannot")
            if estimate is not None and not missing:
                if not float(vectors.norm(direction)):  # nothing can be measured along it
                    return estimate
                if not self._narrow_is_accurate(estimate, arguments):
                    return _central_instead(f"{100 * self.error:.1f}% off")
                if not self.step:  # a broken batch: check on the next one instead
                    return estimate
        self.calls += 1
        return central_difference(*arguments, self.step) if estimate is None else estimate

    def _narrow_is_accurate(self, estimate: Estimate, arguments: Arguments) -> bool:
        """Compares an estimate with the central difference, whose step is measured at first, and
        again where the two are apart. A broken batch, on which no step can be measured, passes.
        """

        def at(step: float) -> Estimate:
            return central_difference(*arguments, step)

        self.error = _difference(estimate, at(self.step)) if self.step else math.inf
        if self.error > NARROW_LEAVE_ABOVE:
            self._measure_step(at, LADDER[next(iter(arguments[1].values())).dtype])
            self.error = _difference(estimate, at(self.step)) if self.step else 0.0
        return self.error <= NARROW_LEAVE_ABOVE

    def replace_inaccurate(self, arguments: Arguments) -> bool:
        if self.central:
            return super().replace_inaccurate(arguments)
        if distributed.rank() == 0:
            log.info("one-sided differences are %.1f%% off: central from here on", 100 * self.error)
        self.central, self.step = True, 0.0
        return True

    def state_dict(self) -> State:
        return super().state_dict() | {"central": self.central}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.central = bool(state["central"])


def _central_instead(reason: str) -> Estimate | None:
    """Logs why the learner's own dtype does not serve; returns no estimate."""
    if distributed.rank() == 0:
        log.info("values in the learner's own dtype do not serve (%s): central ones", reason)
    return None


def _attempted(function: Function, arguments: Arguments) -> tuple[Estimate | None, str]:
    """Returns an estimate; None and why if the model does not support it or memory does not
    suffice.
    """
    try:
        return function(*arguments), ""
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, EstimatorUnsupported) or out_of_memory(error)):
            raise
        return None, str(error)


def _difference(a: Estimate, b: Estimate) -> float:
    """Returns ``|a - b| / |b|`` for the gradients of two estimates, over all processes.

    Infinite if the quotient is not finite, also when only ``b`` is zero.
    """
    pairs = zip(a.gradient, b.gradient, strict=True)
    squares = [((x - y).double().square().sum(), y.double().square().sum()) for x, y in pairs]
    apart, size = distributed.total(
        torch.stack([torch.stack(list(each)) for each in squares]).sum(0)
    )
    error = float((apart / size).sqrt()) if apart else 0.0
    return error if math.isfinite(error) else math.inf


NAMES = (*ESTIMATORS, "one_sided_difference")
"""Estimator names that a recipe accepts."""


def estimator(name: str) -> Estimator:
    """Returns a new estimator for one run, by its name in the recipe."""
    if name == "central_difference":
        return CentralDifference()
    if name == "one_sided_difference":
        return OneSidedDifference()
    return Estimator(ESTIMATORS[name])
