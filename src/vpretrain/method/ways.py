"""Ways to take values over a run, each with a step size that is measured, checked and
checkpointed.

The derivatives themselves are computed by :mod:`vpretrain.method.directional`;
:mod:`vpretrain.method.estimators` tries the ways in turn.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vpretrain.method.directional import (
    EstimatorUnsupported,
    Function,
    Here,
    Loss,
    central_difference,
    forward_mode,
    one_sided_difference,
)
from vpretrain.method.roles import Estimate, Gradient
from vpretrain.system import distributed
from vpretrain.system.memory import out_of_memory

log = logging.getLogger(__name__)

Arguments = tuple[Loss, Mapping[str, Tensor], Gradient, Sequence[Tensor]]
"""Arguments of every estimator: loss, point S, direction and controls."""

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


@dataclass(frozen=True)
class Asked:
    """What is to be estimated, see :meth:`vpretrain.method.estimators.Estimator.__call__`."""

    loss: Loss
    parameters: Mapping[str, Tensor]
    direction: Gradient
    controls: Sequence[Tensor]
    here: Here | None = None
    narrow: Loss | None = None

    @property
    def arguments(self) -> Arguments:
        """What every function of :mod:`vpretrain.method.directional` takes."""
        return self.loss, self.parameters, self.direction, self.controls


class MeasuredStep:
    """The relative step of a difference, measured on the model and checked as the run goes on.

    No fixed step suits every model: a direction that lies in a few coordinates of a pretrained
    model needs one a hundred times smaller than one that lies in all of them. The steps of
    :data:`LADDER` are compared with their neighbours: too large a step differs by curvature, too
    small a one by rounding. The one that differs least is kept.

    Attributes:
        size: of the step; 0: not measured yet.
        error: the relative error at the latest check, estimated by that difference.
        calls: number of estimates so far.
    """

    def __init__(self) -> None:
        self.size, self.error, self.calls = 0.0, 0.0, 0

    @property
    def due(self) -> bool:
        """Whether it is to be measured or checked now."""
        return not self.size or self.calls % CHECK_PERIOD == 0

    def check(self, at: Callable[[float], Estimate]) -> Estimate | None:
        """Returns the estimate at the step; None if a smaller one is more than 1% off."""
        estimate = at(self.size)
        self.error = _difference(estimate, at(self.size / 3))
        return estimate if self.error <= WARN_ABOVE else None

    def measure(self, at: Callable[[float], Estimate], dtype: torch.dtype) -> None:
        """Finds the best step of the ladder; none on a batch whose values are not finite."""
        ladder = LADDER[dtype]
        estimates = [at(step) for step in ladder]
        errors = [_difference(one, next_) for one, next_ in pairwise(estimates)]
        best = min(range(len(errors)), key=errors.__getitem__)
        self.size, self.error = ladder[best], errors[best]
        if not math.isfinite(self.error):
            self.size = self.error = 0.0


class Way(ABC):
    """One way to take values. A run takes it until it no longer serves, and then never again.

    Attributes:
        name: in checkpoints.
        step: its measured step.
    """

    name: str

    def __init__(self) -> None:
        self.step = MeasuredStep()

    @abstractmethod
    def estimate(self, asked: Asked) -> Estimate | None:
        """Returns value and gradient; None on all processes if this way does not serve here."""


class Exact(Way):
    """An exact function, taken to the end of the run."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function, self.name = function, function.__name__

    def estimate(self, asked: Asked) -> Estimate:
        return self.function(*asked.arguments)


class Difference(Way):
    """A difference quotient with a measured step."""

    @abstractmethod
    def at(self, asked: Asked, step: float) -> Estimate:
        """Returns the quotient at a relative step."""

    @abstractmethod
    def gives_up(self, asked: Asked) -> bool:
        """Whether the best step, more than 1% off, is not good enough."""

    def estimate(self, asked: Asked) -> Estimate | None:
        def at(step: float) -> Estimate:
            return self.at(asked, step)

        checked = None
        if self.step.due:
            checked = self.step.check(at) if self.step.size else None
            if checked is None:
                self.step.measure(at, _dtype(asked))
            if self.step.error > WARN_ABOVE and self.gives_up(asked):
                return None
        self.step.calls += 1
        return at(self.step.size) if checked is None else checked


class OneSided(Difference):
    """One-sided differences. The unperturbed side is the learner's own pass, so that a value takes
    half as many passes of the suffix; it does not serve where that pass is another function
    (dropout, learned views), or with an error above 1%.
    """

    name = "one_sided_difference"

    def estimate(self, asked: Asked) -> Estimate | None:
        return None if asked.here is None else super().estimate(asked)

    def at(self, asked: Asked, step: float) -> Estimate:
        assert asked.here is not None
        return one_sided_difference(*asked.arguments, asked.here, step)

    def gives_up(self, asked: Asked) -> bool:
        if distributed.rank() == 0:
            error = 100 * self.step.error
            log.info("one-sided differences are %.1f%% off: central from here on", error)
        return True


class Central(Difference):
    """Central differences, which serve everywhere.

    If the best step is off by more than 1%, a warning is logged; by more than 5%, they give way to
    the fallback, provided that it works on this model and fits in memory, on all processes.

    Args:
        fallback: what comes after this way; None: the best step is kept whatever its error.
    """

    name = "central_difference"

    def __init__(self, fallback: Function | None) -> None:
        super().__init__()
        self.fallback = fallback

    def at(self, asked: Asked, step: float) -> Estimate:
        return central_difference(*asked.arguments, step)

    def gives_up(self, asked: Asked) -> bool:
        if distributed.rank() == 0:
            log.warning(
                "central differences are about %.1f%% off on this model, whatever the step; "
                "`vpretrain doctor` says which estimator is exact on it",
                100 * self.step.error,
            )
        if self.step.error <= LEAVE_ABOVE or self.fallback is None:
            return False
        estimate, _ = _attempted(self.fallback, asked.arguments)
        if any(distributed.any_rank(estimate is None)):
            return False
        if distributed.rank() == 0:
            log.warning("from here on values are taken by %s", self.fallback.__name__)
        return True


class Narrow(Way):
    """Forward mode in the narrow dtype that the learner trains in.

    It takes no difference of close numbers, so that rounding costs it some thousandths. It is
    checked against central differences in float32, whose step is measured for that, and does not
    serve if it is more than 2% off, or if a learner does not support it. Later a batch that it
    cannot value is valued by a central difference, and not checked.
    """

    name = "narrow_forward_mode"

    def estimate(self, asked: Asked) -> Estimate | None:
        if asked.narrow is None:
            return None
        estimate, reason = _attempted(forward_mode, (asked.narrow, *asked.arguments[1:]))
        if self.step.due:
            missing = any(distributed.any_rank(estimate is None))
            if missing and not self.step.size:
                return self._left(reason or "another process cannot")
            if estimate is not None and not missing:
                if not self._is_accurate(estimate, asked):
                    return self._left(f"{100 * self.step.error:.1f}% off")
                if not self.step.size:  # a broken batch: check on the next one instead
                    return estimate
        self.step.calls += 1
        if estimate is None:
            return central_difference(*asked.arguments, self.step.size)
        return estimate

    def _is_accurate(self, estimate: Estimate, asked: Asked) -> bool:
        """Compares with the central difference, whose step is measured at first, and again where
        the two are apart. A broken batch, on which no step can be measured, passes.
        """

        def at(step: float) -> Estimate:
            return central_difference(*asked.arguments, step)

        step = self.step
        step.error = _difference(estimate, at(step.size)) if step.size else math.inf
        if step.error > NARROW_LEAVE_ABOVE:
            step.measure(at, _dtype(asked))
            step.error = _difference(estimate, at(step.size)) if step.size else 0.0
        return step.error <= NARROW_LEAVE_ABOVE

    @staticmethod
    def _left(reason: str) -> None:
        if distributed.rank() == 0:
            log.info("values in the learner's own dtype do not serve (%s): central ones", reason)


def _dtype(asked: Asked) -> torch.dtype:
    return next(iter(asked.parameters.values())).dtype


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
