"""DINO's projection head and its cross-entropy, written once.

Shapes: G global views (the teacher's), V views in all (the student's; the global ones first, in the
teacher's order), B images, P prototypes, D width of the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vpretrain.method import vectors
from vpretrain.system import distributed


class DinoHead(nn.Module):
    """From a pooled feature to one score a prototype: an MLP to a bottleneck, then the cosine with
    each prototype.

    The last layer is weight-normalised with its scale held at 1, so that no prototype can win by
    its length.

    Args:
        width: D.
        hidden: widths of the MLP's hidden layers, in order; empty makes the MLP one linear map.
        bottleneck: width of the space that the prototypes live in.
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
        """``[N, D]`` features to ``[N, P]`` cosines in [-1, 1], in the head's dtype; gradients
        flow."""
        point = functional.normalize(self.mlp(pooled.to(self.prototypes.dtype)), dim=-1)
        return functional.linear(point, functional.normalize(self.prototypes, dim=-1))


def fitting_prototypes(pictures: int) -> int:
    """A power of two with four pictures or more each, from 64 to the paper's 8,192."""
    return 2 ** min(13, max(6, (pictures // 4).bit_length() - 1))


class RunningCenter:
    """The running mean of the teacher's scores, which takes each learner step's scores in once the
    step has been taken.

    Args:
        mean: ``[P]`` float32 or wider; changed in place.
        momentum: share of the old mean that stays at each step, in [0, 1].
    """

    def __init__(self, mean: Tensor, momentum: float) -> None:
        self.mean, self.momentum = mean, momentum
        self.of_step: Tensor | None = None

    @torch.no_grad()
    def observe(self, scores: Tensor) -> None:
        """Scores ``[G, B, P]`` of the batch whose loss is taken, the last of a step counting; over
        all processes."""
        batch = vectors.wide(scores).mean(dim=(0, 1))
        self.of_step = distributed.total(batch) / distributed.world()

    @torch.no_grad()
    def move(self) -> None:
        """After the optimizer's step; a step without scores moves nothing."""
        if self.of_step is not None:
            self.mean.lerp_(self.of_step, 1 - self.momentum)
            self.of_step = None


def dino_loss(
    student: Tensor, targets: Tensor, *, temperature: float = 0.1, pairs: int | None = None
) -> Tensor:
    """Cross-entropy of the student with the targets over all pairs of different views; a scalar.

    The slow definition::

        for g in range(G):
            for v in range(V):
                if v != g:
                    for b in range(B):
                        for p in range(P):
                            loss -= targets[g, b, p] * log_softmax(student[v, b] / temperature)[p] /
                            (pairs * B)

    Args:
        student: ``[V, B, P]`` scores, the views that the teacher saw first; computed in float32 or
            wider; gradients flow.
        targets: ``[G, B, P]``, >= 0, G <= V; a row sums to the weight of its view (1 where views
            are not weighted). Gradients flow to it: the loss is linear in it.
        temperature: of the student, > 0.
        pairs: what the sum over pairs is divided by; by default their number, ``G * (V - 1)``.
            Given where ``student`` holds only some of the views, so that each pair counts as much
            as in the whole.
    """
    count = len(targets)
    log_p = torch.log_softmax(vectors.wide(student) / temperature, dim=-1)
    # Every pair, less those of a view with itself: no [G, V, B, P] is made.
    others = log_p.sum(dim=0) - log_p[:count]
    return -(targets * others).sum(dim=-1).mean(dim=1).sum() / (pairs or count * (len(student) - 1))


def teacher_targets(logits: Tensor, center: Tensor, *, temperature: float = 0.04) -> Tensor:
    """``softmax((logits - center) / temperature)``, ``[G, B, P]`` in float32 or wider, detached.

    Args:
        logits: ``[G, B, P]`` teacher scores.
        center: ``[P]``, the running mean of such scores: taken off, no prototype can win in every
            image.
        temperature: of the teacher, > 0; lower than the student's, so that the targets are sharper.
    """
    return torch.softmax((vectors.wide(logits.detach()) - center) / temperature, dim=-1)


def balanced_targets(logits: Tensor, *, temperature: float = 0.04, rounds: int = 3) -> Tensor:
    """Sinkhorn-Knopp targets, ``[G, B, P]`` in float32 or wider, rows sum to 1, detached (SwAV;
    DINOv2 and DINOv3).

    The slow definition, over the N = G B rows at once::

        q = exp(logits / temperature)
        for _ in range(rounds):
            q = q / q.sum(over rows)        # every prototype gets as much as every other
            q = q / q.sum(over prototypes)  # every row is a distribution

    Where every image is given the same scores no image is told from another, but no prototype can
    win: a small model that collapses under a running centre does not under this. The rows are those
    of all processes.

    Args:
        logits: ``[G, B, P]`` teacher scores.
        temperature: > 0.
        rounds: at least 1.
    """
    scores = vectors.wide(logits.detach()).flatten(0, 1) / temperature
    for _ in range(rounds):
        scores = scores - distributed.logsumexp(scores)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.exp().view(logits.shape)
