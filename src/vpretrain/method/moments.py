"""Running means and covariances of figures, over the recent batches of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from vpretrain.method.roles import State
from vpretrain.system import distributed

MEMORY = 0.9
"""Factor by which a batch counts less after each further one."""


class Moments:
    """Means and covariances of k figures over the batches of all processes, recent ones most.

    A batch counts by its number of entries. Products are of deviations from the mean, so a figure
    without a spread has a variance of exactly 0.

    Args:
        memory: factor by which a batch counts less after each further one, in [0, 1); 0: only the
            latest batch counts.

    Attributes:
        count: number of entries, by these factors; a scalar like the others, None before the first
            batch.
        mean: ``[k]`` float64.
        scatter: ``[k, k]`` float64, sums of products of deviations.
    """

    def __init__(self, memory: float = MEMORY) -> None:
        self.memory = memory
        self.count: Tensor | None = None
        self.mean = self.scatter = torch.zeros(0)

    def update(self, *figures: Tensor) -> None:
        """Adds a batch. A collective call.

        Args:
            figures: k tensors of one shape, which may differ between processes.
        """
        values = torch.stack([each.detach().flatten().double() for each in figures])
        sums = torch.cat([values.sum(dim=1), values.new_tensor([values.shape[1]])])
        *_, count = sums = distributed.total(sums)
        mean = sums[:-1] / count
        centred = values - mean[:, None]
        scatter = distributed.total(centred @ centred.t())
        if self.count is not None and self.memory:
            past, before, spread = (
                each.to(mean) for each in (self.memory * self.count, self.mean, self.scatter)
            )
            away, whole = mean - before, count + past
            scatter += self.memory * spread + torch.outer(away, away) * (count * past / whole)
            mean, count = mean - away * (past / whole), whole
        self.count, self.mean, self.scatter = count, mean, scatter

    @property
    def std(self) -> Tensor:
        """The standard deviations (of all, not of a sample), ``[k]`` float64."""
        assert self.count is not None, "no batch yet"
        return (self.scatter.diagonal() / self.count).sqrt()

    @property
    def correlation(self) -> float:
        """Pearson's r of the first two figures; 0 if either has no spread."""
        scale = self.scatter[0, 0].sqrt() * self.scatter[1, 1].sqrt()
        return float(self.scatter[0, 1] / scale) if scale > 0 else 0.0

    def standardised(self, values: Tensor) -> Tensor:
        """Returns the deviations of values of the first figure from its mean, in its standard
        deviations; zeros if it has no spread."""
        mean, spread = self.mean[0], self.std[0]
        return torch.where(spread == 0, 0, (values.double() - mean) / spread).to(values.dtype)

    def state_dict(self) -> State:
        """Returns count, mean and scatter."""
        return {"count": self.count, "mean": self.mean, "scatter": self.scatter}

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        self.count, self.mean, self.scatter = state["count"], state["mean"], state["scatter"]
