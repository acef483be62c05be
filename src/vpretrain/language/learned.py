"""Designers that learn: a small network scores the candidates of every token.

``Ascent`` is the paper's (TopKAugmentor, Section 3.3): the network emits ``r`` and the gate, and climbs the value.
``Field`` is ours: since the value is linear in the target, the network *regresses* the token values, and the target
follows from them by the anchored rule.

Shapes: B rows, T tokens, N predicted tokens, K candidates, D learner width, H designer width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.contracts import Appraise
from vpretrain.language.designers import Reliability, agreement_metric, correlation, gain_bound, target_metrics
from vpretrain.language.learner import Context
from vpretrain.language.targets import (
    SoftTargets,
    anchored,
    candidate_log_probabilities,
    candidates,
    mix,
    one_hot,
    standardised,
)


class CandidateScorer(nn.Module):
    """A compact causal transformer over the learner's hidden states that scores K candidates a position.

    It has no vocabulary-sized table of its own: candidates are embedded through the learner's frozen output embedding.
    Inputs are detached, so nothing flows back to the learner.

    Args:
        learner_width: D.
        hidden: H.
        layers, heads: of the causal transformer.
        gated: whether a gate is emitted beside the scores.
    """

    def __init__(self, learner_width: int, *, hidden: int, layers: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.LayerNorm(learner_width), nn.Linear(learner_width, hidden))
        layer = nn.TransformerEncoderLayer(
            hidden, heads, 4 * hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.context = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(hidden), enable_nested_tensor=False)
        self.candidate = nn.Linear(learner_width, hidden)
        self.scalars = nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.score = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.gate = nn.Linear(hidden, 1) if gated else None
        if self.gate is not None:  # 0.12 of its bound to begin with: near one-hot, but with a slope to learn from
            nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, context: Context, ids: Tensor, log_p: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[N, K]`` and the gate in [0, 1], ``[N]`` (ones without one), in the network's dtype.

        Args:
            context: the learner's pass over the batch.
            ids: ``[N, K]`` candidates, the true token first.
            log_p: ``[N, K]`` the learner's log probabilities of them.
            embedding: ``[V, D]`` the learner's output embedding.
        """
        dtype = self.candidate.weight.dtype  # its own, whatever the learner's
        hidden, log_p = context.hidden.detach().to(dtype), log_p.to(dtype)
        length = hidden.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        states = self.context(self.read(hidden), mask=causal)[context.where]  # [N, H]
        truth = torch.zeros_like(log_p)
        truth[:, 0] = 1
        features = self.scalars(torch.stack([log_p.exp(), log_p.clamp_min(-20) / 5, truth], dim=2))  # [N, K, H]
        tokens = self.candidate(embedding.detach()[ids].to(dtype))  # [N, K, H]
        joint = self.score(states[:, None] + tokens + features).squeeze(2)
        bilinear = torch.einsum("nh,nkh->nk", self.query(states), tokens) / tokens.shape[2] ** 0.5
        gate = torch.sigmoid(self.gate(states).squeeze(1)) if self.gate is not None else states.new_ones(len(states))
        return joint + bilinear, gate


@dataclass
class Steering:
    """What the learned designers have in common.

    Args:
        count: K candidates.
        gate_max: ``alpha_max`` in [0, 1].
        learning_rate: of Adam on ``phi``.
        reliability: how values shrink.
    """

    count: int
    gate_max: float
    learning_rate: float
    reliability: Reliability


class Learned:
    """A designer with a network.

    Args:
        network: ``phi``.
        embedding: the learner's output embedding ``[V, D]``; read, never trained here.
        steering: see :class:`Steering`.
    """

    listens = True

    def __init__(self, network: CandidateScorer, embedding: Tensor, steering: Steering) -> None:
        self.network, self.embedding, self.steering = network, embedding, steering
        self.optimizer = torch.optim.Adam(network.parameters(), lr=steering.learning_rate)

    def propose(self, context: Context) -> SoftTargets:
        """The task as a function of ``phi``, with its graph."""
        raise NotImplementedError

    def construct(self, context: Context, appraise: Appraise) -> SoftTargets:
        """The task for the learner's step; no graph."""
        with torch.no_grad():
            return self.propose(context)

    def plain(self, context: Context) -> SoftTargets:
        """One-hot targets."""
        return one_hot(context.labels)

    def read(self, context: Context) -> tuple[Tensor, Tensor]:
        """Candidates ``[N, K]`` and the learner's log probabilities of them."""
        ids = candidates(context.logits, context.labels, self.steering.count)
        return ids, candidate_log_probabilities(context.logits.detach(), ids)

    def values(self, context: Context, appraise: Appraise, ids: Tensor) -> Tensor:
        """Exact token values ``[N, K]``, the mean over the feedback batches; updates the agreement."""
        each = [a.gradient[0] for a in appraise.each(context, one_hot(context.labels, ids.shape[1], ids))]
        self.steering.reliability.hear(each)
        return torch.stack(each).mean(dim=0)

    def gain(self, targets: SoftTargets, values: Tensor) -> dict[str, float]:
        """What targets made before this feedback are worth under it, over one-hot ones, and how they look."""
        mass = targets.mass.detach()
        return {
            "gain": float((mass * values).sum() - values[:, 0].sum()),
            "value_plain": float(values[:, 0].sum()),
            "gain_bound": gain_bound(values, self.steering.gate_max),
            **agreement_metric(self.steering.reliability),
            **target_metrics(mass),
        }

    def descend(self, loss: Tensor) -> None:
        """One optimizer step on ``phi``, gradient norm clipped to 1."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and agreement."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "agreement": self.steering.reliability.agreement,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steering.reliability.agreement = state["agreement"]


class Ascent(Learned):
    """The paper's designer: ``r`` and the gate come from the network, which ascends the value (eq. 26, 42).

    The gradient is ``dV/d phi = sum s_t(v) dq_t(v)/d phi``: s carries everything the learner has to say, so there is no
    graph through the learner.

    Args:
        network, embedding, steering: as :class:`Learned`; the network has one extra output, the gate.
        entropy_bonus: ``lambda`` >= 0; R(phi) is the negative entropy of the targets, in nats.
    """

    def __init__(
        self, network: CandidateScorer, embedding: Tensor, steering: Steering, *, entropy_bonus: float
    ) -> None:
        super().__init__(network, embedding, steering)
        self.entropy_bonus = entropy_bonus

    def propose(self, context: Context) -> SoftTargets:
        """``q = (1 - alpha) one_hot + alpha r`` (eq. 15), both from the network."""
        ids, log_p = self.read(context)
        scores, gate = self.network(context, ids, log_p, self.embedding)
        return mix(ids, torch.softmax(scores, dim=1), self.steering.gate_max * gate)

    def learn(self, context: Context, appraise: Appraise) -> dict[str, float]:
        """One step up the value."""
        targets = self.propose(context)
        values = self.values(context, appraise, targets.ids)
        metrics = self.gain(targets, values)
        # In units of the mean |s| of a token, so that the step does not depend on the loss's scale.
        value = (targets.mass * values).sum() / values.abs().sum().clamp_min(torch.finfo(values.dtype).tiny)
        # Clamped: the slope of the entropy is infinite at zero mass, where a closed gate puts every other candidate.
        entropy = -(targets.mass * targets.mass.clamp_min(1e-12).log()).sum(dim=1).mean()
        self.descend(-self.steering.reliability.factor * value * values.shape[1] - self.entropy_bonus * entropy)
        return metrics


class Field(Learned):
    """Ours: the network regresses ``s / std(s)``; the target follows by the anchored rule.

    Args:
        network, embedding, steering: as :class:`Learned`; the network has no extra output.
        temperature, clip: of the rule.
        updates: regression steps a meta step, at least 1; the gradient of the feedback is paid for once.
    """

    def __init__(
        self,
        network: CandidateScorer,
        embedding: Tensor,
        steering: Steering,
        *,
        temperature: float,
        clip: float,
        updates: int = 1,
    ) -> None:
        super().__init__(network, embedding, steering)
        self.temperature, self.clip, self.updates = temperature, clip, updates

    def propose(self, context: Context) -> SoftTargets:
        """The anchored rule on the predicted values."""
        ids, log_p = self.read(context)
        predicted, _ = self.network(context, ids, log_p, self.embedding)
        return self._shape(ids, log_p, predicted)

    def learn(self, context: Context, appraise: Appraise) -> dict[str, float]:
        """``updates`` regression steps on the exact values of this batch: they do not depend on ``phi``."""
        ids, log_p = self.read(context)
        values = self.values(context, appraise, ids)
        target = standardised(values)
        metrics: dict[str, float] = {}
        for _ in range(self.updates):
            predicted, _ = self.network(context, ids, log_p, self.embedding)
            if not metrics:  # before the first update: what the network says of a batch that it has not seen
                metrics = self.gain(self._shape(ids, log_p, predicted.detach()), values)
                metrics["correlation"] = correlation(predicted.detach(), values)
            self.descend(nn.functional.smooth_l1_loss(predicted, target))
        return metrics

    def _shape(self, ids: Tensor, log_p: Tensor, predicted: Tensor) -> SoftTargets:
        proposal, gate = anchored(
            predicted, log_p, temperature=self.temperature, clip=self.clip, gate_max=self.steering.gate_max,
            reliability=self.steering.reliability.factor,
        )  # fmt: skip
        return mix(ids, proposal, gate)
