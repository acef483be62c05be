"""Alignments: the value of a proposed update to the feedback set, and the equivalent direction.

An alignment is a smooth function ``A(g_pre)``. Its gradient with respect to the task equals that of
an inner product with a *constant* vector, ``grad A = grad <u, g_pre>`` with ``u = dA/dg_pre`` held
fixed, so the rest of the program only ever sees ``(value, direction)``.

===================  ===========================  =========================  ==========
alignment            value                        direction u                needs g_pre
===================  ===========================  =========================  ==========
dot (eq. 9)          gd . gp                      gd                         no
optimizer_aware      (P gd) . gp (eq. 35)         P gd                       no
cosine (eq. 26)      gd . gp / (|gd| |gp|)        gd / (|gd| |gp|)           yes
                                                  - cos gp / |gp|^2
lower_bound          gd . gp - L eta |gp|^2 / 2   gd - L eta gp              yes
                     (Prop. 2.1)
===================  ===========================  =========================  ==========
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vpretrain.method import vectors
from vpretrain.method.roles import AlignmentName, Designer, Gradient


class Valued(NamedTuple):
    """An alignment at one point: its value, a scalar, and its gradient in ``g_pre``."""

    value: Tensor
    direction: Gradient


@dataclass(frozen=True)
class Alignment:
    """One of the alignments of the table above.

    Args:
        name: which one.
        smoothness: ``L`` of Prop. 2.1, the curvature of the feedback loss along a step;
            ``lower_bound`` only.
        groups: prefixes of names (``code/``). The pieces of the gradients under each prefix are
            aligned separately, and the value is the mean over groups (eq. 46). Empty: all pieces
            together.
    """

    name: AlignmentName
    smoothness: float = 1.0
    groups: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        designer: Designer[Any, Any],
        name: AlignmentName,
        smoothness: float = 1.0,
        groups: tuple[str, ...] = (),
    ) -> Alignment:
        """Returns the alignment that the designer's rule is derived for, by default the run's."""
        return cls(designer.alignment or name, smoothness, groups)

    @property
    def linear(self) -> bool:
        """Whether ``u`` does not depend on ``g_pre``.

        The value is then ``<u, g_pre>`` and needs no backward pass for ``g_pre``.
        """
        return self.name in ("dot", "optimizer_aware")

    @property
    def preconditioned(self) -> bool:
        """Whether ``g_down`` is first multiplied by the optimizer's preconditioner ``P``."""
        return self.name == "optimizer_aware"

    def __call__(self, down: Gradient, pre: Gradient, step_size: float) -> Valued:
        """Returns value and direction at ``pre``.

        Args:
            down: ``g_down`` over S (``P g_down`` for ``optimizer_aware``).
            pre: ``g_pre`` over S at the current task.
            step_size: ``eta``, the learner's learning rate; ``lower_bound`` only.
        """
        if self.groups:
            return self._mean_over_groups(down, pre, step_size)
        product = vectors.inner(down, pre)
        if self.name == "cosine":
            down_norm, pre_norm = vectors.norm(down), vectors.norm(pre)
            if not down_norm * pre_norm:  # one gradient is zero: no direction is better
                return Valued(torch.zeros_like(product), vectors.combine((0.0, down)))
            cosine = product / (down_norm * pre_norm)
            return Valued(
                cosine,
                vectors.combine((1 / (down_norm * pre_norm), down), (-cosine / pre_norm**2, pre)),
            )
        if self.name == "lower_bound":
            curvature = self.smoothness * step_size
            value = product - curvature / 2 * vectors.inner(pre, pre)
            return Valued(value, vectors.combine((1.0, down), (-curvature, pre)))
        return Valued(product, down)

    def _mean_over_groups(self, down: Gradient, pre: Gradient, step_size: float) -> Valued:
        ungrouped, count = replace(self, groups=()), len(self.groups)
        value, direction = torch.zeros(()), vectors.combine((0.0, down))
        for group in self.groups:
            names = [name for name in down if name.startswith(group)]
            of_group = ungrouped(
                {name: down[name] for name in names}, {name: pre[name] for name in names}, step_size
            )
            value = value.to(of_group.value) + of_group.value / count
            direction |= vectors.combine((1 / count, of_group.direction))
        return Valued(value, direction)


def adam_preconditioner(
    optimizer: torch.optim.Optimizer, aligned: dict[str, nn.Parameter], floor: float
) -> Gradient | None:
    """Returns the diagonal preconditioner ``P`` over S, from AdamW's second moments (eq. 35).

    ``P = 1 / max(sqrt(v_hat), floor * rms)``, up to a constant.

    Without a floor the rows of rare tokens in embeddings and head, whose ``v_hat`` is close to
    zero, outweigh all others.

    Args:
        optimizer: an Adam or AdamW that holds every aligned parameter, with 32-bit or 8-bit
            moments.
        aligned: S.
        floor: dimensionless, relative to the root mean square of ``sqrt(v_hat)`` over S.

    Returns:
        ``P`` multiplied by that root mean square, so that P = 1 where ``v_hat`` is typical; None
        before the optimizer's first step.
    """
    second_moments: Gradient = {}
    for group in optimizer.param_groups:
        members = {id(parameter) for parameter in group["params"]}
        for name, parameter in aligned.items():
            if id(parameter) in members:
                state = optimizer.state.get(parameter)
                if not state:
                    # No gradient ever reached it (an unused expert): P does not matter there.
                    continue
                correction = 1 - group["betas"][1] ** float(state["step"])
                second_moments[name] = second_moment(state) / correction
    if not second_moments:
        return None
    count = sum(v.numel() for v in second_moments.values())
    rms = torch.sqrt(torch.stack([v.sum() for v in second_moments.values()]).sum() / count)
    if rms == 0:
        return None
    preconditioner = {name: torch.ones_like(vectors.wide(p)) for name, p in aligned.items()}
    for name, v in second_moments.items():
        preconditioner[name] = rms / torch.clamp(v.sqrt(), min=float(floor * rms))
    return preconditioner


BLOCK = 256
"""Number of entries of an 8-bit moment that share a scale in bitsandbytes."""


def second_moment(state: Mapping[str, Any]) -> Tensor:
    """Returns ``v`` of a parameter, before bias correction, in float32 or wider.

    8-bit optimizers store an entry as ``levels[code] * scale[block]`` (arXiv 2110.02861): torchao
    in a tensor subclass, bitsandbytes in three tensors. Both keep small parameters in 32 bits.

    Args:
        state: the parameter's optimizer state, in torch's, bitsandbytes' or torchao's AdamW.
    """
    if "state2" in state:  # bitsandbytes
        moment = state["state2"]
        if "qmap2" not in state:
            return vectors.wide(moment)
        return _dequantised(moment, state["qmap2"], state["absmax2"], BLOCK)
    moment = state["exp_avg_sq"]
    if not hasattr(moment, "codes"):
        return vectors.wide(moment)
    codes, scale = moment.codes, moment.scale  # torchao
    return _dequantised(codes, moment.qmap, scale, codes.numel() // scale.numel())


def _dequantised(codes: Tensor, levels: Tensor, scale: Tensor, block: int) -> Tensor:
    scales = scale.repeat_interleave(block)[: codes.numel()]
    return (levels[codes.flatten().int()] * scales).view(codes.shape)
