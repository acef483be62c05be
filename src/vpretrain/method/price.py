"""How far a spread of weights pays: what it gains against what it costs (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vpretrain.method.roles import Metrics, State
from vpretrain.system import distributed


@dataclass
class SpreadPrice:
    """Scales a tilt of weights by how much it gains beyond what the baseline gains anyway.

    To first order, a step on weights ``1 + c d`` lowers the feedback loss by ``V + c G``, where V
    is the value of the baseline task and G what the deviations d add. Its gradient is as noisy as
    that of a batch smaller by a factor of ``1 + c^2 S``, with S the mean of ``d^2``. AdamW divides
    by that noise, so the progress of a step is proportional to ``(V + c G) / sqrt(1 + c^2 S)``.
    This is largest at ``c = G / (V S)``, and grows with c without end if plain training works
    against the feedback (``V <= 0``). The fraction of the full tilt is that c, at most 1, and 0 if
    ``G <= 0``.

    Args:
        memory: weight of the past in the running means of V, G and S, in [0, 1).
        means: running means of V, G and S; None before the first update.
    """

    memory: float = 0.7
    means: tuple[float, float, float] | None = None

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
        new = (baseline, gain, float(distributed.mean(moved.square())))
        self.means = new if self.means is None else self._blended(self.means, new)
        return {"value_baseline": baseline, "gain": gain, "tilt_fraction": self.fraction}

    def _blended(
        self, old: tuple[float, float, float], new: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        v, g, s = (self.memory * a + (1 - self.memory) * b for a, b in zip(old, new, strict=True))
        return v, g, s

    @property
    def fraction(self) -> float:
        """The part of the full tilt that pays, in [0, 1]; 1 before the first update."""
        if self.means is None:
            return 1.0
        baseline, gain, spread = self.means
        if gain <= 0:
            return 0.0
        return 1.0 if baseline * spread <= 0 else min(1.0, gain / (baseline * spread))

    def state_dict(self) -> State:
        return {"means": self.means}

    def load_state_dict(self, state: State) -> None:
        self.means = None if state["means"] is None else tuple(state["means"])
