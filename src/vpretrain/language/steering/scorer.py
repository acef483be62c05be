"""The network that scores candidates from the learner's final hidden states (ours).

Shapes: B rows, T tokens, N predicted tokens, K candidates, D learner width, H designer width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpretrain.language.steering.arms import NetworkCost
from vpretrain.language.steering.rules import Candidates
from vpretrain.system.devices import for_kind

if TYPE_CHECKING:
    from vpretrain.language.learner.cost_model import Setting, Shape

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Number of elements ``[M, K, H]`` scored at a time, by kind of device: few enough for a CPU's
cache, enough to fill an accelerator."""


def rows_at_a_time(device: torch.device, elements: int) -> int:
    """Number of positions to score at a time, at ``elements`` elements each."""
    return max(1, for_kind(CHUNK_ELEMENTS, device.type) // elements)


def scorer_cost(shape: Shape, at: Setting) -> NetworkCost:
    """The cost of a :class:`CandidateScorer`; it embeds min(N K, V) distinct candidates at most."""
    width, h, pairs = shape.width, at.hidden, at.predicted * at.candidates
    blocks = at.layers * (24 * h * h + 4 * at.window * h)
    batch = at.tokens * (2 * width * h + blocks) + 2 * at.predicted * h * h
    batch += 2 * min(pairs, shape.vocabulary) * width * h
    scores = pairs * (2 * (3 * h + h * h) + 2 * (h * h + h) + 2 * h)
    return NetworkCost(batch, scores, 2 * width * h + 12 * at.layers * h * h)


@dataclass(frozen=True)
class ScorerInputs:
    """The scorer's inputs for a batch, detached from the learner, and its regression targets.

    Args:
        hidden: ``[B, T, D]``, the learner's final hidden states.
        document: ``[B, T]`` int64, the document of each token; -1 on padding.
        where: ``(row, position)``, each ``[N]`` int64: the positions that predict the N tokens.
        ids: ``[N, K]``, candidates, the true token first.
        log_p: ``[N, K]``, the learner's log probabilities of the candidates.
        values: ``[N, K]``, regression targets: token values in standard deviations; None if they
            are not needed.
    """

    hidden: Tensor
    document: Tensor
    where: tuple[Tensor, Tensor]
    ids: Tensor
    log_p: Tensor
    values: Tensor | None = None

    @classmethod
    def of(cls, candidates: Candidates, values: Tensor | None = None) -> ScorerInputs:
        """The inputs from the learner's forward pass on a batch."""
        context, ids, log_p = candidates.context, candidates.ids, candidates.log_p
        hidden, document = context.hidden.detach(), context.batch.document
        return cls(hidden, document, context.where, ids, log_p, values)

    def to(self, device: torch.device | str) -> ScorerInputs:
        row, position = self.where
        values = None if self.values is None else self.values.to(device)
        where, ids = (row.to(device), position.to(device)), self.ids.to(device)
        hidden, document = self.hidden.to(device), self.document.to(device)
        return ScorerInputs(hidden, document, where, ids, self.log_p.to(device), values)


class CandidateScorer(nn.Module):
    """A small causal transformer over the learner's hidden states that scores K candidates at each
    position; each document of a row is a separate context.

    It has no vocabulary-sized table of its own: candidates are embedded through the learner's
    output embedding. Inputs are detached, so no gradient flows to the learner.

    Args:
        learner_width: D.
        hidden: H.
        layers, heads: numbers of layers and heads of the transformer.
        gated: whether it emits a gate as well as scores.
    """

    def __init__(
        self, learner_width: int, *, hidden: int, layers: int, heads: int, gated: bool
    ) -> None:
        super().__init__()
        self.heads = heads
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
            # Starts at 0.12 of its bound: near one-hot, but with a gradient to learn from.
            nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, inputs: ScorerInputs, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[N, K]`` and the gate in [0, 1], ``[N]`` (ones if there is no gate), in the
        network's dtype.

        Args:
            inputs: see :class:`ScorerInputs`.
            embedding: ``[V, D]``, the learner's output embedding.
        """
        dtype = self.candidate.weight.dtype  # independent of the learner's dtype
        hidden, log_p = inputs.hidden.to(dtype), inputs.log_p.to(dtype)
        document, length = inputs.document, hidden.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        unseen = later | (document[:, :, None] != document[:, None, :])  # [B, T, T]
        mask = unseen.repeat_interleave(self.heads, dim=0)
        states = self.context(self.read(hidden), mask=mask)[inputs.where]  # [N, H]
        truth = torch.zeros_like(log_p)
        truth[:, 0] = 1
        scalars = torch.stack([log_p.exp(), log_p.clamp_min(-20) / 5, truth], dim=2)  # [N, K, 3]
        among, place = inputs.ids.unique(return_inverse=True)  # positions share most candidates
        tokens = self.candidate(embedding.detach()[among].to(dtype))  # [U, H]
        rows = rows_at_a_time(hidden.device, place.shape[1] * tokens.shape[1])
        scored = [
            # Recomputed in the backward pass, so that [N, K, H] is never held.
            checkpoint(self._scores, *part, tokens, use_reentrant=False, preserve_rng_state=False)
            for part in zip(states.split(rows), scalars.split(rows), place.split(rows), strict=True)
        ]
        if self.gate is None:
            return torch.cat(scored), states.new_ones(len(states))
        return torch.cat(scored), torch.sigmoid(self.gate(states).squeeze(1))

    def _scores(self, states: Tensor, scalars: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
        """Scores ``[M, K]``; ``place`` ``[M, K]`` indexes the candidates' ``tokens`` ``[U, H]``."""
        of = nn.functional.embedding(place, tokens)  # [M, K, H]
        joint = self.score(states[:, None] + of + self.scalars(scalars)).squeeze(2)
        bilinear = torch.einsum("nh,nkh->nk", self.query(states), of) / of.shape[2] ** 0.5
        return joint + bilinear
