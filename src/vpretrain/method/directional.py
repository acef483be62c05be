"""The value of a task as a directional derivative, four ways behind one signature.

For a direction ``u`` over the aligned parameters S and the loss ``L(S; controls)`` of a task,

    V(controls) = <u, grad_S L> = d/d eps L(S + eps u; controls) at eps = 0,

and a designer needs ``V`` and ``dV/d controls``. Every estimator here takes

    loss       : S -> L, a scalar; its graph reaches ``controls``
    parameters : the point S (detached by the estimator)
    direction  : u, same names and shapes as ``parameters``
    controls   : tensors that require grad and that ``loss`` closed over

and returns an :class:`Estimate`. They differ in what they ask of the kernels in the path of S, in
cost and in error:

====================  ====================================  ==========================  ========
estimator             needs                                 cost                        error
====================  ====================================  ==========================  ========
double_backward       kernels differentiable twice          forward, backward, and the  rounding
                                                            backward of both
forward_mode          kernels with forward-mode formulas    one dual forward            rounding
central_difference    nothing                               two ordinary forwards       O(eps^2)
one_sided_difference  the learner's own pass in float32     one ordinary forward        O(eps)
====================  ====================================  ==========================  ========
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpretrain.method import vectors
from vpretrain.method.roles import Estimate, Gradient, Metrics, State
from vpretrain.system import distributed

Loss = Callable[[Mapping[str, Tensor]], Tensor]
Here = Callable[[], Tensor]
"""The loss at S itself, from a pass that was made anyway."""


log = logging.getLogger(__name__)


class EstimatorUnsupported(RuntimeError):
    """A kernel on the way from S to the loss has no formula for what the estimator asks of it."""


@contextmanager
def _second_order(estimator: str) -> Iterator[None]:
    """Selects the math attention kernel (the fused ones have no second derivatives); says so when
    that is not enough.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise EstimatorUnsupported(
            f"{estimator} cannot differentiate this model on this device: "
            f"{str(error).splitlines()[0]} "
            "Set value.estimator to central_difference (any kernel), or the model's attention "
            "to eager or sdpa."
        ) from error


def double_backward(
    loss: Loss, parameters: Mapping[str, Tensor], direction: Gradient, controls: Sequence[Tensor]
) -> Estimate:
    """The paper's way (Algorithm 1): differentiate ``<u, grad_S L>`` through the backward pass. The
    reference.
    """
    point = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with _second_order("double_backward"), torch.enable_grad():
        gradients = torch.autograd.grad(loss(point), list(point.values()), create_graph=True)
        value = sum(
            (
                (direction[name] * gradient).sum()
                for name, gradient in zip(point, gradients, strict=True)
            ),
            start=gradients[0].new_zeros(()),
        )
        gradient = torch.autograd.grad(value, controls)
    return Estimate(value.detach(), tuple(g.detach() for g in gradient))


def forward_mode(
    loss: Loss, parameters: Mapping[str, Tensor], direction: Gradient, controls: Sequence[Tensor]
) -> Estimate:
    """Exact, by dual numbers: the tangent of ``dL/d controls`` along ``u`` (forward over reverse).

    The order matters: reverse over forward is silently wrong through fused LayerNorm and BatchNorm,
    whose forward-mode formulas are not themselves differentiable everywhere.
    """
    with _second_order("forward_mode"), torch.enable_grad(), forward_ad.dual_level():
        point = {
            name: forward_ad.make_dual(value.detach(), direction[name].to(value.dtype))
            for name, value in parameters.items()
        }
        primal = loss(point)
        value = forward_ad.unpack_dual(primal).tangent
        tangents = tuple(
            torch.zeros_like(control) if tangent is None else tangent.detach().clone()
            for control, gradient in zip(
                controls, torch.autograd.grad(primal, controls), strict=True
            )
            for tangent in [forward_ad.unpack_dual(gradient).tangent]
        )
        return Estimate(primal.new_zeros(()) if value is None else value.detach().clone(), tangents)


def central_difference(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    direction: Gradient,
    controls: Sequence[Tensor],
    relative_step: float | None = None,
) -> Estimate:
    """``[L(S + eps u) - L(S - eps u)] / (2 eps)``: two ordinary forwards, any attention kernel,
    first-order memory.

    Run it in float32 or float64; in bfloat16 the rounding of the loss drowns the difference
    (learners cast their suffix up for this).

    Args:
        loss: of S, see the module.
        parameters: the point S.
        direction: u.
        controls: what the loss closed over.
        relative_step: norm of the perturbation over the norm of S; None: :data:`RELATIVE_STEP`,
            which no model need suit. :class:`CentralDifference` measures one.
    """
    if not (epsilon := _epsilon(parameters, direction, relative_step)):
        return _nothing(direction, controls)
    ahead, behind = (
        _heights(lambda: loss(_moved(parameters, direction, step)), controls)  # noqa: B023
        for step in (epsilon, -epsilon)
    )
    return _quotient(ahead, behind, 2 * epsilon)


def one_sided_difference(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    direction: Gradient,
    controls: Sequence[Tensor],
    here: Here,
    relative_step: float | None = None,
) -> Estimate:
    """``[L(S + eps u) - L(S)] / eps``: one forward, beside the one that the learner makes anyway.

    Args:
        loss: of S, see the module.
        parameters: the point S.
        direction: u.
        controls: what the loss closed over.
        here: the loss at S.
        relative_step: as of :func:`central_difference`.
    """
    if not (epsilon := _epsilon(parameters, direction, relative_step)):
        return _nothing(direction, controls)
    behind = _heights(here, controls)  # first: the other side may use what that pass has computed
    ahead = _heights(lambda: loss(_moved(parameters, direction, epsilon)), controls)
    return _quotient(ahead, behind, epsilon)


def _epsilon(
    parameters: Mapping[str, Tensor], direction: Gradient, relative_step: float | None
) -> float:
    """How often ``u`` is added to S; 0 where there is no direction."""
    length, size = vectors.norm(direction), vectors.norm(parameters)
    if length == 0:
        return 0.0
    relative = relative_step or RELATIVE_STEP[next(iter(parameters.values())).dtype]
    return float(
        relative * (size if size else 1.0) / length
    )  # LoRA's B is zero before the first step


def _nothing(direction: Gradient, controls: Sequence[Tensor]) -> Estimate:
    zero = next(iter(direction.values())).new_zeros(())
    return Estimate(zero, tuple(torch.zeros_like(control) for control in controls))


def _moved(parameters: Mapping[str, Tensor], direction: Gradient, step: float) -> dict[str, Tensor]:
    return {
        name: torch.add(value.detach(), direction[name], alpha=step)
        for name, value in parameters.items()
    }


def _heights(
    loss: Callable[[], Tensor], controls: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss and its gradient with respect to the controls."""
    with torch.enable_grad():
        height = loss()
        gradient = torch.autograd.grad(height, controls)
    return height.detach(), gradient


def _quotient(
    ahead: tuple[Tensor, tuple[Tensor, ...]],
    behind: tuple[Tensor, tuple[Tensor, ...]],
    distance: float,
) -> Estimate:
    return Estimate(
        (ahead[0] - behind[0]) / distance,
        tuple((a - b) / distance for a, b in zip(ahead[1], behind[1], strict=True)),
    )


RELATIVE_STEP = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Perturbation of S relative to its norm, by dtype, where none is measured."""

Function = Callable[[Loss, Mapping[str, Tensor], Gradient, Sequence[Tensor]], Estimate]

ESTIMATORS: dict[str, Function] = {
    "central_difference": central_difference,
    "forward_mode": forward_mode,
    "double_backward": double_backward,
}


class Estimator:
    """An estimator in the course of a run; this one is exact, and has nothing to remember.

    Args:
        function: one of :data:`ESTIMATORS`.
    """

    def __init__(self, function: Function) -> None:
        self.function = function

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
"""Estimates from one check of the step to the next: two passes more in 800, below 1%."""
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
            return self.difference(*given, here, step)

        due = not self.step or self.calls % CHECK_PERIOD == 0
        if due and not self._still_good(at):
            self._climb(at, LADDER[next(iter(parameters.values())).dtype])
            if self.error > WARN_ABOVE and self.gives_way(*given):
                return self(*given, here)
        self.calls += 1
        return at(self.step)

    def difference(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
        here: Here | None,
        step: float,
    ) -> Estimate:
        """The quotient at a relative step."""
        return central_difference(loss, parameters, direction, controls, step)

    def gives_way(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
    ) -> bool:
        """Says that no step is good enough; whether another way is taken from now on."""
        if distributed.rank() == 0:
            log.warning(
                "central differences are about %.1f%% off on this model, whatever the step; "
                "`vpretrain doctor` says which estimator is exact on it",
                100 * self.error,
            )
        return self.error > LEAVE_ABOVE and self._can_leave(loss, parameters, direction, controls)

    def _still_good(self, at: Callable[[float], Estimate]) -> bool:
        """Checks the step in use against a smaller one; there is none at the beginning."""
        if not self.step:
            return False
        self.error = _difference(at(self.step), at(self.step / 3))
        return self.error <= WARN_ABOVE

    def _climb(self, at: Callable[[float], Estimate], ladder: Sequence[float]) -> None:
        """Keeps the step that differs least from the next smaller one."""
        estimates = [at(step) for step in ladder]
        errors = [_difference(one, next_) for one, next_ in pairwise(estimates)]
        best = min(range(len(errors)), key=errors.__getitem__)
        self.step, self.error = ladder[best], errors[best]
        if not math.isfinite(self.error):  # a broken batch says nothing: measure on the next
            self.step = self.error = 0.0

    def _can_leave(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
    ) -> bool:
        """Whether the other estimator works on this model; it is used from now on if so."""
        if self.otherwise is None:
            return False
        try:
            self.otherwise(loss, parameters, direction, controls)
        except EstimatorUnsupported:
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
    Where there is no such pass (learned views, narrow dtypes, dropout), or the error of the best
    step is above 1%, differences are central from then on.
    """

    def __init__(self, otherwise: Function | None = forward_mode) -> None:
        super().__init__(otherwise)
        self.central = False

    def difference(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
        here: Here | None,
        step: float,
    ) -> Estimate:
        if here is None or self.central:
            return central_difference(loss, parameters, direction, controls, step)
        return one_sided_difference(loss, parameters, direction, controls, here, step)

    def gives_way(
        self,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        direction: Gradient,
        controls: Sequence[Tensor],
    ) -> bool:
        if self.central:
            return super().gives_way(loss, parameters, direction, controls)
        log.info("one-sided differences are %.1f%% off: central from here on", 100 * self.error)
        self.central, self.step = True, 0.0
        return True

    def state_dict(self) -> State:
        return super().state_dict() | {"central": self.central}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.central = bool(state["central"])


def _difference(a: Estimate, b: Estimate) -> float:
    """Norm of the difference of two gradients over that of the second, on all processes."""
    pairs = zip(a.gradient, b.gradient, strict=True)
    squares = [((x - y).double().square().sum(), y.double().square().sum()) for x, y in pairs]
    apart, size = distributed.total(
        torch.stack([torch.stack(list(each)) for each in squares]).sum(0)
    )
    return 0.0 if size == 0 else float((apart / size).sqrt())


NAMES = (*ESTIMATORS, "one_sided_difference")
"""What a recipe can ask for."""


def estimator(name: str) -> Estimator:
    """A fresh estimator for one run, by the recipe's name of it."""
    if name == "central_difference":
        return CentralDifference()
    if name == "one_sided_difference":
        return OneSidedDifference()
    return Estimator(ESTIMATORS[name])
