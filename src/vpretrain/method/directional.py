"""Estimators of a task's value as a directional derivative.

For a direction ``u`` over the aligned parameters S and the loss ``L(S; controls)`` of a task,

    V(controls) = <u, grad_S L> = d/d eps L(S + eps u; controls) at eps = 0,

and a designer needs ``V`` and ``dV/d controls``. Every estimator here takes

    loss       : S -> L, a scalar; its graph reaches ``controls``
    parameters : the point S (detached by the estimator)
    direction  : u, same names and shapes as ``parameters``
    controls   : tensors that require grad and that ``loss`` closes over

and returns an :class:`Estimate`; differences also take a step, and ``one_sided_difference`` the
loss at S, which the learner's own pass has. They differ in what they require of the kernels between
S and the loss, in cost and in error:

====================  ====================================  ==========================  ========
estimator             needs                                 cost                        error
====================  ====================================  ==========================  ========
double_backward       kernels differentiable twice          forward, backward, and the  rounding
                                                            backward of both
forward_mode          kernels with forward-mode formulas    one dual forward            rounding
central_difference    nothing                               two ordinary forwards       O(eps^2)
one_sided_difference  the learner's own pass in float32     one ordinary forward        O(eps)
====================  ====================================  ==========================  ========

To these comes the backward pass from the loss to the controls, of each forward: next to nothing for
masses of targets, which enter at the loss, and a pass through the suffix for views.
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
"""The loss at the unperturbed S, from a forward pass that the learner runs anyway."""


class EstimatorUnsupported(RuntimeError):
    """A kernel between S and the loss lacks a derivative formula that the estimator needs."""


@contextmanager
def _second_order(estimator: str) -> Iterator[None]:
    """Selects the math attention kernel, since the fused ones have no second derivatives.

    Raises:
        EstimatorUnsupported: the model cannot be differentiated even so.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except EstimatorUnsupported:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        raise EstimatorUnsupported(
            f"{estimator} cannot differentiate this model on this device: "
            f"{str(error).splitlines()[0].rstrip('.')}. "
            "Set value.estimator to central_difference (any kernel), or the model's attention "
            "to eager or sdpa."
        ) from error


def double_backward(
    loss: Loss, parameters: Mapping[str, Tensor], direction: Gradient, controls: Sequence[Tensor]
) -> Estimate:
    """Differentiates ``<u, grad_S L>`` through the backward pass.

    This is the paper's method (Algorithm 1) and the reference for the others.
    """
    point = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with _second_order("double_backward"), torch.enable_grad():
        gradients = torch.autograd.grad(
            loss(point), list(point.values()), create_graph=True, materialize_grads=True
        )
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
    """Computes value and gradient exactly, with dual numbers (forward over reverse).

    The gradient is the tangent of ``dL/d controls`` along ``u``.

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
    """Computes ``[L(S + eps u) - L(S - eps u)] / (2 eps)``: two ordinary forward passes.

    Works with any attention kernel and in first-order memory. Run it in float32 or float64: in
    bfloat16 the rounding error of the loss exceeds the difference (learners upcast their suffix for
    this).

    Args:
        loss: a function of S, see the module docstring.
        parameters: the point S.
        direction: u.
        controls: the tensors that the loss closes over.
        relative_step: norm of the perturbation divided by the norm of S; None:
            :data:`RELATIVE_STEP`, which does not suit every model
            (:mod:`vpretrain.method.ways` measures one).
    """
    if not (epsilon := _epsilon(parameters, direction, relative_step)):
        return _zero_estimate(direction, controls)

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
    """Computes ``[L(S + eps u) - L(S)] / eps``: one forward pass in addition to the learner's own.

    Args:
        loss: a function of S, see the module docstring.
        parameters: the point S.
        direction: u.
        controls: the tensors that the loss closes over.
        here: returns the loss at S.
        relative_step: see :func:`central_difference`.
    """
    if not (epsilon := _epsilon(parameters, direction, relative_step)):
        return _zero_estimate(direction, controls)
    # First, since the perturbed loss may reuse what this pass computes.
    behind = _with_gradient(here, controls)
    ahead = _with_gradient(lambda: loss(_moved(parameters, direction, epsilon)), controls)
    return _quotient(ahead, behind, epsilon)


def _epsilon(
    parameters: Mapping[str, Tensor], direction: Gradient, relative_step: float | None
) -> float:
    """Returns the multiple of ``u`` by which S is perturbed; 0 if ``u`` is zero."""
    length, size = vectors.norm(direction), vectors.norm(parameters)
    if length == 0:
        return 0.0
    relative = relative_step or RELATIVE_STEP[next(iter(parameters.values())).dtype]
    # S can be all zeros: LoRA's B before the first step.
    return float(relative * (size if size else 1.0) / length)


def _zero_estimate(direction: Gradient, controls: Sequence[Tensor]) -> Estimate:
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
    """Returns the loss (detached) and its gradient with respect to the controls."""
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
"""Default norm of the perturbation relative to the norm of S, by dtype."""

Function = Callable[[Loss, Mapping[str, Tensor], Gradient, Sequence[Tensor]], Estimate]

ESTIMATORS: dict[str, Function] = {
    "central_difference": central_difference,
    "forward_mode": forward_mode,
    "double_backward": double_backward,
}
