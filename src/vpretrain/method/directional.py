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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpretrain.method import vectors
from vpretrain.method.roles import Estimate, Gradient
from vpretrain.system.memory import out_of_memory

Loss = Callable[[Mapping[str, Tensor]], Tensor]
Here = Callable[[], Tensor]
"""The loss at S itself, from a pass that was made anyway."""


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
        if out_of_memory(error):
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
            which no model need suit; :mod:`vpretrain.method.estimators` measures one.
    """
    if not (epsilon := _epsilon(parameters, direction, relative_step)):
        return _nothing(direction, controls)

    def at(step: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _with_gradient(lambda: loss(_moved(parameters, direction, step)), controls)

    return _quotient(at(epsilon), at(-epsilon), 2 * epsilon)


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
    behind = _with_gradient(
        here, controls
    )  # first: the other side may use what that pass has computed
    ahead = _with_gradient(lambda: loss(_moved(parameters, direction, epsilon)), controls)
    return _quotient(ahead, behind, epsilon)


def _epsilon(
    parameters: Mapping[str, Tensor], direction: Gradient, relative_step: float | None
) -> float:
    """The multiple of ``u`` by which S is moved; 0 where there is no direction."""
    length, size = vectors.norm(direction), vectors.norm(parameters)
    if length == 0:
        return 0.0
    relative = relative_step or RELATIVE_STEP[next(iter(parameters.values())).dtype]
    # LoRA's B is zero before the first step.
    return float(relative * (size if size else 1.0) / length)


def _nothing(direction: Gradient, controls: Sequence[Tensor]) -> Estimate:
    zero = next(iter(direction.values())).new_zeros(())
    return Estimate(zero, tuple(torch.zeros_like(control) for control in controls))


def _moved(parameters: Mapping[str, Tensor], direction: Gradient, step: float) -> dict[str, Tensor]:
    return {
        name: torch.add(value.detach(), direction[name], alpha=step)
        for name, value in parameters.items()
    }


def _with_gradient(
    loss: Callable[[], Tensor], controls: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss and its gradient with respect to the controls."""
    with torch.enable_grad():
        value = loss()
        gradient = torch.autograd.grad(value, controls)
    return value.detach(), gradient


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
