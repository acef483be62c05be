"""From what choices are worth to what the learner is asked for: the rules that every modality
shares.

Shapes: N places of a batch where a choice is made, K candidates for it, the plain one first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vpretrain.system import distributed


def anchored(
    values: Tensor, log_p: Tensor, *, temperature: float, clip: float, gate_max: float
) -> tuple[Tensor, Tensor]:
    """The best targets for given token values under a KL anchor to the learner (ours; the paper
    ascends instead).

    ``argmax_r sum_v r(v) z(v) - KL(r || p)`` over the candidates is ``r ~ p exp(z)`` with
    ``z = values / temperature``: value where the learner already sees a possibility, no push onto
    tokens that it rightly rules out. The gate opens with the expected gain of r over the plain
    choice, ``gate_max * clip(gain, 0, 1)`` in units of z, so that temperature -> 0 with
    ``clip = inf`` puts ``gate_max`` on the most valuable candidate: the best that any target under
    that bound can do.

    Args:
        values: ``[N, K]``, what each candidate is worth in standard deviations over the batch, the
            plain choice first.
        log_p: ``[N, K]``, the learner's (or teacher's) log probabilities of them.
        temperature: tau > 0, in the units of ``values``.
        clip: bound on ``|z|``; ``inf`` for none.
        gate_max: ``alpha_max`` in [0, 1].

    Returns:
        ``(r, gate)``: ``[N, K]`` summing to 1, and ``[N]`` in [0, gate_max].
    """
    z = (values / temperature).clamp(-clip, clip)
    proposal = torch.softmax(log_p + z, dim=1)
    gain = (proposal * z).sum(dim=1) - z[:, 0]
    return proposal, gate_max * gain.clamp(0, 1)


def standardised(values: Tensor) -> Tensor:
    """Values over their standard deviation over the batch, on all processes: the scale of loss and
    direction drops out.
    """
    return values / distributed.std(values).clamp_min(torch.finfo(values.dtype).tiny)


def tilted(values: Tensor, tilt: float) -> Tensor:
    """Weights ``1 + tilt * clip(values, +-3)``, at least 0, divided by their mean over the batch,
    on all processes.

    Args:
        values: ``[N]``, in standard deviations, centred.
        tilt: >= 0, weight per standard deviation.
    """
    weights = (1 + tilt * values.clamp(-3, 3)).clamp_min(0)
    return weights / distributed.mean(weights)
