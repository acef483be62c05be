"""The network that reads the learner's final hidden states (ours) and scores the candidates.

Shapes: B rows, T tokens, N predicted tokens, K candidates, D learner width, H designer width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpretrain.language.learner.causal import Context
from vpretrain.language.steering.arms import NetworkCost

if TYPE_CHECKING:
    from vpretrain.language.learner.cost_model import Setting, Shape

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Numbers ``[M, K, H]`` that are scored at a time, by kind of device: few enough for a CPU's cache,
enough to fill an accelerator."""


def rows_at_a_time(device: torch.device, elements: int) -> int:
    """Positions that are scored at a time, where each takes so many numbers."""
    return max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"]) // elements)


def scorer_cost(shape: Shape, at: Setting) -> NetworkCost:
    """The cost of a :class:`CandidateScorer`: positions share candidates, N K or V at most."""
    width, h, pairs = shape.width, at.hidden, at.predicted * at.candidates
    blocks = at.layers * (24 * h * h + 4 * at.window * h)
    batch = at.tokens * (2 * width * h + blocks) + 2 * at.predicted * h * h
    batch += 2 * min(pairs, shape.vocabulary) * width * h
    scores = pairs * (2 * (3 * h + h * h) + 2 * (h * h + h) + 2 * h)
    return NetworkCost(batch, scores, 2 * width * h + 12 * at.layers * h * h)


@dataclass(frozen=True)
class Lesson:
    """What a network reads of a batch, cut off from the learner.

    Args:
        hidden: ``[B, T, D]`` the learner's final hidden states.
        where: ``(row, position)``, each ``[N]`` int64, of the predicted tokens.
        ids: ``[N, K]`` candidates, the true token first.
        log_p: ``[N, K]`` the learner's log probabilities of them.
        values: ``[N, K]`` what there is to learn: token values in standard deviations; None where
            they were not asked for.
    """

    hidden: Tensor
    where: tuple[Tensor, Tensor]
    ids: Tensor
    log_p: Tensor
    values: Tensor | None = None

    @classmethod
    def of(
        cls, context: Context, ids: Tensor, log_p: Tensor, values: Tensor | None = None
    ) -> Lesson:
        """From the learner's pass over the batch."""
        return cls(context.hidden.detach(), context.where, ids, log_p, values)

    def to(self, device: torch.device | str) -> Lesson:
        row, position = self.where
        values = None if self.values is None else self.values.to(device)
        where, ids = (row.to(device), position.to(device)), self.ids.to(device)
        return Lesson(self.hidden.to(device), where, ids, self.log_p.to(device), values)


class CandidateScorer(nn.Module):
    """A compact causal transformer over the learner's hidden states that scores K candidates a
    position.

    It has no vocabulary-sized table of its own: candidates are embedded through the learner's
    frozen output embedding. Inputs are detached, so nothing flows back to the learner.

    Args:
        learner_width: D.
        hidden: H.
        layers, heads: of the causal transformer.
        gated: whether a gate is emitted beside the scores.
    """

    def __init__(
        self, learner_width: int, *, hidden: int, layers: int, heads: int, gated: bool
    ) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.LayerNorm(learner_width), nn.Linear(learner_width, hidden))
        options: dict[str, Any] = {"activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(hidden, heads, 4 * hidden, dropout=0.0, **options)
        self.context = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(hidden), enable_nested_tensor=False
        )
        self.candidate = nn.Linear(learner_width, hidden)
        self.scalars = nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.score = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.gate = nn.Linear(hidden, 1) if gated else None
        if self.gate is not None:
            # 0.12 of its bound to begin with: near one-hot, but with a slope to learn from.
            nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, lesson: Lesson, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[N, K]`` and the gate in [0, 1], ``[N]`` (ones without one), in the network's
        dtype.

        Args:
            lesson: what it reads of the batch.
            embedding: ``[V, D]`` the learner's output embedding.
        """
        dtype = self.candidate.weight.dtype  # its own, whatever the learner's
        hidden, log_p = lesson.hidden.to(dtype), lesson.log_p.to(dtype)
        length = hidden.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        states = self.context(self.read(hidden), mask=causal)[lesson.where]  # [N, H]
        truth = torch.zeros_like(log_p)
        truth[:, 0] = 1
        scalars = torch.stack([log_p.exp(), log_p.clamp_min(-20) / 5, truth], dim=2)  # [N, K, 3]
        among, place = lesson.ids.unique(return_inverse=True)  # positions share most candidates
        tokens = self.candidate(embedding.detach()[among].to(dtype))  # [U, H]
        rows = rows_at_a_time(hidden.device, place.shape[1] * tokens.shape[1])
        scored = [
            # Made again for the gradient: [N, K, H] is never held.
            checkpoint(self._scores, *part, tokens, use_reentrant=False, preserve_rng_state=False)
            for part in zip(states.split(rows), scalars.split(rows), place.split(rows), strict=True)
        ]
        if self.gate is None:
            return torch.cat(scored), states.new_ones(len(states))
        return torch.cat(scored), torch.sigmoid(self.gate(states).squeeze(1))

    def _scores(self, states: Tensor, scalars: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
        """``[M, K]``; ``place`` ``[M, K]`` is which of ``tokens`` ``[U, H]`` a candidate is."""
        of = nn.functional.embedding(place, tokens)  # [M, K, H]
        joint = self.score(states[:, None] + of + self.scalars(scalars)).squeeze(2)
        bilinear = torch.einsum("nh,nkh->nk", self.query(states), of) / of.shape[2] ** 0.5
        return joint + bilinear
