"""How far a spread of weights pays: what it gains against what it costs (ours)."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, stdev

import torch
from torch import Tensor

from vpretrain.method.roles import Metrics, State
from vpretrain.system import distributed


class SpreadPrice:
    """Scales a tilt of weights by how much it gains beyond what the baseline gains anyway.

    To first order, a step on weights ``1 + c d`` lowers the feedback loss by ``V + c G``, where V
    is the value of the baseline task and G what the deviations d add. Its gradient is as noisy as
    that of a batch smaller by a factor of ``1 + c^2 S``, with S the mean of ``d^2``. AdamW divides
    by that noise, so the progress of a step is proportional to ``(V + c G) / sqrt(1 + c^2 S)``.
    This is largest at ``c = G / (V S)``, and grows with c without end if plain training works
    against the feedback (``V <= 0``). The fraction of the full tilt is that c, at most 1.

    V and G are means over the latest updates. Each update is scaled so that ``V^2 + G^2 / S`` is 1,
    because sizes vary by orders of magnitude along a run. One standard error is taken off G: a gain
    that may as well be noise pays for nothing.

    Args:
        window: number of updates that the means are over.
    """

    def __init__(self, window: int = 8) -> None:
        self.seen: deque[tuple[float, float, float]] = deque(maxlen=window)

    def update(self, weights: Tensor, values: Tensor) -> Metrics:
        """Records one batch at the full tilt.

        Args:
            weights: ``[N]``, mean 1 over all processes.
            values: ``[N]``, the derivative of V with respect to each weight.

        Returns:
            ``value_baseline`` (V), ``gain`` (G) and ``tilt_fraction``, over all processes.
        """
        moved = weights - 1
        baseline, gain = distributed.total(
            torch.stack([values.sum(), (moved * values).sum()]).double()
        ).tolist()
        spread = math.sqrt(float(distributed.mean(moved.square())))
        gain_per_spread = gain / spread if spread else 0.0
        size = math.hypot(baseline, gain_per_spread) or 1.0
        self.seen.append((baseline / size, gain_per_spread / size, spread))
        return {"value_baseline": baseline, "gain": gain, "tilt_fraction": self.fraction}

    @property
    def fraction(self) -> float:
        """The part of the full tilt that pays, in [0, 1]; 1 before the first update."""
        if not self.seen:
            return 1.0
        baselines, gains, spreads = zip(*self.seen, strict=True)
        error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        baseline, gain, spread = fmean(baselines), fmean(gains) - error, fmean(spreads)
        if gain <= 0:
            return 0.0
        return 1.0 if baseline <= 0 else min(1.0, gain / (baseline * spread))

    def state_dict(self) -> State:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: State) -> None:
        self.seen = deque(map(tuple, state["seen"]), maxlen=self.seen.maxlen)
