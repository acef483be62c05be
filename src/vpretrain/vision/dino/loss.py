"""DINO's projection head, loss, targets and centre.

Shapes: G global views (the teacher's), V views in all (the student's; global views first, in the
teacher's order), B images, P prototypes, D width of the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vpretrain.method import vectors
from vpretrain.system import distributed

ROUNDS = 3
"""Normalisation rounds of Sinkhorn-Knopp, as in SwAV, DINOv2 and DINOv3."""


class DinoHead(nn.Module):
    """DINO head: an MLP to a bottleneck, then the cosine similarity with each prototype.

    The last layer is weight-normalised with its scale fixed at 1, so that no prototype wins by its
    norm.

    Args:
        width: D.
        hidden: widths of the MLP's hidden layers, in order; empty makes the MLP one linear layer.
        bottleneck: dimension of the prototypes.
        prototypes: P, the output dimension.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: Sequence[int] = (2048, 2048),
        bottleneck: int = 256,
        prototypes: int = 8192,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.GELU()]
            width = size
        self.mlp = nn.Sequential(*layers, nn.Linear(width, bottleneck))
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map ``[N, D]`` features to ``[N, P]`` cosines in [-1, 1], in the head's dtype.

        Gradients flow."""
        point = functional.normalize(self.mlp(pooled.to(self.prototypes.dtype)), dim=-1)
        return functional.linear(point, functional.normalize(self.prototypes, dim=-1))


def fitting_prototypes(pictures: int) -> int:
    """Return a number of prototypes that suits a number of pictures.

    The largest power of two with at least four pictures per prototype, clamped to 64 .. 8,192 (the
    paper's)."""
    return 2 ** min(13, max(6, (pictures // 4).bit_length() - 1))


class RunningCenter:
    """The running mean of the teacher's scores, updated after each learner step.

    Args:
        mean: ``[P]`` float32 or wider; changed in place.
        momentum: EMA momentum of the mean, in [0, 1].
    """

    def __init__(self, mean: Tensor, momentum: float) -> None:
        self.mean, self.momentum = mean, momentum
        self.of_step: Tensor | None = None

    @torch.no_grad()
    def observe(self, scores: Tensor) -> None:
        """Record the mean of a batch's scores ``[G, B, P]`` over all processes.

        Only the last batch of a step counts."""
        batch = vectors.wide(scores).mean(dim=(0, 1))
        self.of_step = distributed.total(batch) / distributed.world()

    @torch.no_grad()
    def move(self) -> None:
        """Update the mean after the optimizer's step; without recorded scores it stays."""
        if self.of_step is not None:
            self.mean.lerp_(self.of_step, 1 - self.momentum)
            self.of_step = None


def dino_loss(
    student: Tensor, targets: Tensor, *, temperature: float = 0.1, pairs: int | None = None
) -> Tensor:
    """Mean cross-entropy between targets and student over all pairs of different views, a scalar.

    The slow definition::

        for g in range(G):
            for v in range(V):
                if v != g:
                    for b in range(B):
                        for p in range(P):
                            loss -= targets[g, b, p] * log_softmax(student[v, b] / temperature)[p] /
                            (pairs * B)

    Args:
        student: ``[V, B, P]`` scores, the teacher's views first; converted to float32 or wider.
            Gradients flow.
        targets: ``[G, B, P]``, >= 0, G <= V; a row sums to the weight of its view (1 for unweighted
            views). The loss is linear in the targets, and gradients flow to them.
        temperature: student temperature, > 0.
        pairs: divisor of the sum over pairs; default: their number, ``G * (V - 1)``. If ``student``
            holds only some of the views, the number of pairs of all views keeps the weight of each
            pair.
    """
    count = len(targets)
    log_p = torch.log_softmax(vectors.wide(student) / temperature, dim=-1)
    # Sum over all views minus the view itself, which avoids a [G, V, B, P] tensor.
    others = log_p.sum(dim=0) - log_p[:count]
    return -(targets * others).sum(dim=-1).mean(dim=1).sum() / (pairs or count * (len(student) - 1))


def teacher_targets(logits: Tensor, center: Tensor, *, temperature: float = 0.04) -> Tensor:
    """``softmax((logits - center) / temperature)``, ``[G, B, P]`` in float32 or wider, detached.

    Args:
        logits: ``[G, B, P]`` teacher scores.
        center: ``[P]`` running mean of the scores; subtracting it keeps one prototype from winning
            in every image.
        temperature: teacher temperature, > 0; lower than the student's, for sharper targets.
    """
    return torch.softmax((vectors.wide(logits.detach()) - center) / temperature, dim=-1)


def balanced_targets(logits: Tensor, *, temperature: float = 0.04) -> Tensor:
    """Sinkhorn-Knopp targets (SwAV, DINOv2, DINOv3), ``[G, B, P]`` in float32 or wider, detached.

    The slow definition, over the N = G B rows at once::

        q = exp(logits / temperature)
        for _ in range(ROUNDS):
            q = q / q.sum(over rows)        # every prototype gets the same total
            q = q / q.sum(over prototypes)  # every row sums to 1

    The sums run over the rows of all processes. Even if all images have the same scores, no
    prototype can win; a small model that collapses with a running centre does not with this.

    Args:
        logits: ``[G, B, P]`` teacher scores.
        temperature: teacher temperature, > 0.
    """
    scores = vectors.wide(logits.detach()).flatten(0, 1) / temperature
    for _ in range(ROUNDS):
        scores = scores - distributed.logsumexp(scores)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.exp().view(logits.shape)
