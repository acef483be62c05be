"""Rules that turn the values of choices into the learner's task, shared by all modalities.

Shapes: N positions of a batch at which a choice is made, K candidates at each, the baseline choice
first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vpretrain.system import distributed


def anchored(
    values: Tensor, log_p: Tensor, *, temperature: float, clip: float, gate_max: float
) -> tuple[Tensor, Tensor]:
    """Returns the best targets for given values under a KL anchor to the learner.

    Ours; the paper uses gradient ascent instead.

    ``argmax_r sum_v r(v) z(v) - KL(r || p)`` over the candidates is ``r ~ p exp(z)`` with ``z =
    values / temperature``: the value counts where the learner already finds a candidate plausible,
    and tokens that it rightly rules out are not pushed. The gate opens with the expected gain of r
    over the baseline choice, ``gate_max * clip(gain, 0, 1)`` in units of z. With temperature -> 0
    and ``clip = inf``, ``gate_max`` goes to the most valuable candidate: the optimum over all
    targets under that bound.

    Args:
        values: ``[N, K]``, values of the candidates in standard deviations over the batch, the
            baseline choice first.
        log_p: ``[N, K]``, their log probabilities under the learner (or teacher).
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
    """Divides values by their standard deviation over the batch, on all processes.

    The scales of loss and direction cancel. Values are not centred. Values without a spread, such
    as a single one, compare nothing and become zeros.
    """
    spread = distributed.std(values)
    return torch.where(spread == 0, 0, values / spread)


def tilted(values: Tensor, tilt: float) -> Tensor:
    """Returns weights that grow linearly with the value: ``1 + tilt * clip(values, +-3)``, >= 0.

    Those of a ``weighted`` rule are divided by their mean afterwards.

    Args:
        values: in standard deviations from the mean.
        tilt: >= 0, weight per standard deviation.
    """
    return (1 + tilt * values.clamp(-3, 3)).clamp_min(0)
