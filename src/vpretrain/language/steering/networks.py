"""Designers that learn: a small network scores the candidates of every token.

``CandidateDesigner`` is the paper's (TopKAugmentor, Section 3.3): the network emits ``r`` and the
gate, and climbs the value. ``Field`` is ours: since the value is linear in the target, the network
*regresses* the token values, and the target follows from them by the anchored rule.

Shapes: B rows, T tokens, N predicted tokens, K candidates, D learner width, H designer width.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpretrain.config.recipe import Layers
from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.targets import SoftTargets, mix
from vpretrain.language.steering.arms import (
    ARMS,
    CandidatesArm,
    Cost,
    LanguageArm,
    Site,
    TiltArm,
)
from vpretrain.language.steering.rules import (
    Anchored,
    AnchoredArm,
    Candidates,
    TokenRule,
    TokenWeights,
)
from vpretrain.method.network import LearnedDesigner, Learning
from vpretrain.method.reliability import correlation
from vpretrain.method.roles import Bounds, Learned, State, ValueFunction, detached
from vpretrain.method.rules import standardised
from vpretrain.system import distributed
from vpretrain.system.contexts import own_random_state

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Numbers ``[M, K, H]`` that are scored at a time, by kind of device: few enough for a CPU's cache,
enough to fill an accelerator."""


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
        where = (row.to(device), position.to(device))
        return Lesson(
            self.hidden.to(device), where, self.ids.to(device), self.log_p.to(device), values
        )


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
        layer = nn.TransformerEncoderLayer(
            hidden,
            heads,
            4 * hidden,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
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
        if (
            self.gate is not None
        ):  # 0.12 of its bound to begin with: near one-hot, but with a slope to learn from
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
        among, place = lesson.ids.unique(
            return_inverse=True
        )  # positions share most of their candidates
        tokens = self.candidate(embedding.detach()[among].to(dtype))  # [U, H]
        held = CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"])
        rows = max(1, held // (place.shape[1] * tokens.shape[1]))
        scored = [
            # Made again for the gradient: [N, K, H] is never held.
            checkpoint(self._scores, *part, tokens, use_reentrant=False, preserve_rng_state=False)
            for part in zip(states.split(rows), scalars.split(rows), place.split(rows), strict=True)
        ]
        gate = (
            torch.sigmoid(self.gate(states).squeeze(1))
            if self.gate is not None
            else states.new_ones(len(states))
        )
        return torch.cat(scored), gate

    def _scores(self, states: Tensor, scalars: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
        """``[M, K]`` of M positions; ``place`` ``[M, K]`` says which of ``tokens`` ``[U, H]`` a
        candidate is.
        """
        of = nn.functional.embedding(place, tokens)  # [M, K, H]
        joint = self.score(states[:, None] + of + self.scalars(scalars)).squeeze(2)
        bilinear = torch.einsum("nh,nkh->nk", self.query(states), of) / of.shape[2] ** 0.5
        return joint + bilinear


class Scored(LearnedDesigner[Context, SoftTargets]):
    """A designer whose network scores candidates.

    Args:
        network: ``phi``.
        embedding: the learner's output embedding ``[V, D]``; read, never trained here.
        rule: gives candidates and plain targets, and says how targets look.
        learning: see :class:`vpretrain.method.network.Learning`; values do not depend on ``phi``,
            so that one hearing serves every update.
    """

    def __init__(
        self, network: CandidateScorer, embedding: Tensor, rule: TokenRule, learning: Learning
    ) -> None:
        super().__init__(network, learning)
        self.embedding, self.rule = embedding, rule

    @property
    def bounds(self) -> Bounds:
        return self.rule.bounds

    def baseline_task(self, context: Context) -> SoftTargets:
        return self.rule.baseline_task(context)

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        raise NotImplementedError

    def score(self, among: Candidates) -> tuple[Tensor, Tensor]:
        """Scores ``[N, K]`` and gate ``[N]`` of the network, with their graph to ``phi``."""
        scores, gate = self.network(
            Lesson.of(among.context, among.ids, among.log_p), self.embedding
        )
        return scores, gate

    def predicted_values(self, context: Context) -> Tensor:
        """``[N, K]`` scores of the candidates."""
        with torch.no_grad():
            return self.score(self.rule.probe(context))[0]

    def gain(self, among: Candidates, targets: SoftTargets, values: Tensor) -> dict[str, float]:
        """What targets made before this feedback are worth under it, over one-hot ones, and how
        they look.
        """
        targets = detached(targets)
        return {
            "gain": float(distributed.total((targets.mass * values).sum() - values[:, 0].sum())),
            "value_baseline": float(distributed.total(values[:, 0].sum())),
            **self.rule.metrics(among, targets, values),
            **self.learning.reliability.metrics(),
        }


class NetworkArm(LanguageArm):
    """Of designers with a network."""

    hidden: PositiveInt = 256
    layers: Layers = 6
    heads: PositiveInt = 4
    learning_rate: NonNegativeFloat = 1e-4
    updates: PositiveInt = 1
    """Steps of the designer's network a meta step: the values that it learns from do not depend on
    it.
    """
    init_from: Path | None = None
    """Folder of a finished run whose designer this run starts with; its learner must have used the
    same tokenizer."""
    frozen: bool = False
    """Whether that designer stays as it is: it uses no feedback, and there are no meta steps."""
    companion: bool = False
    """Whether that designer goes on reading the hidden states of the model it was trained with,
    which then runs beside the learner: for a learner of another size or origin."""

    @model_validator(mode="after")
    def _starts_from_something(self) -> Self:
        if self.init_from is None and (self.frozen or self.companion):
            raise ValueError(
                "designer.init_from names no run, and only the designer of a run can be frozen or "
                "have a companion"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(
                f"designer.heads is {self.heads}, which does not divide designer.hidden, "
                f"{self.hidden}"
            )
        return self

    def build(self, site: Site) -> Scored:
        raise NotImplementedError

    def network(self, site: Site, *, gated: bool = False) -> CandidateScorer:
        """With fresh weights; the learner's random numbers are the same in every arm."""
        with own_random_state(site.seed):
            scorer = CandidateScorer(
                site.embedding.shape[1],
                hidden=self.hidden,
                layers=self.layers,
                heads=self.heads,
                gated=gated,
            )
        return scorer.to(site.learner.device)

    def learning(self, site: Site) -> Learning:
        return Learning(self.learning_rate, site.reliability, self.updates)


class CandidateDesigner(Scored):
    """The paper's designer: ``r`` and the gate come from the network, which ascends the value (eq.
    26, 42).

    The gradient is ``dV/d phi = sum s_t(v) dq_t(v)/d phi``: s carries everything the learner has to
    say, so there is no graph through the learner. The value is linear in the targets, unlike that
    of :class:`vpretrain.method.network.CandidateDesigner`: what is heard of the candidates values
    any targets over them, plain ones too.

    Args:
        network: as :class:`Scored`, with one extra output, the gate.
        embedding: as :class:`Scored`.
        targets: the rule whose place it takes, over the same candidates and under the same bound of
            the gate.
        learning: as :class:`Scored`.
        entropy_bonus: ``lambda`` >= 0; R(phi) is the negative entropy of the targets, in nats.
        anchor: >= 0, price of ``gate * KL(r || p)`` in standard deviations of the value a nat
            (ours; the closed form's temperature is the same price).
        gate_price: >= 0, price of the mean gate, in standard deviations of the value (ours).
    """

    def __init__(
        self,
        network: CandidateScorer,
        embedding: Tensor,
        targets: Anchored,
        learning: Learning,
        *,
        entropy_bonus: float,
        anchor: float = 0.0,
        gate_price: float = 0.0,
    ) -> None:
        super().__init__(network, embedding, targets, learning)
        self.gate_max, self.entropy_bonus = targets.gate_max, entropy_bonus
        self.anchor, self.gate_price = anchor, gate_price

    def propose(self, context: Context) -> SoftTargets:
        """``q = (1 - alpha) one_hot + alpha r`` (eq. 15), both from the network."""
        return self._targets(self.rule.probe(context))[0]

    def _targets(self, among: Candidates) -> tuple[SoftTargets, Tensor, Tensor]:
        scores, gate = self.score(among)
        log_r, alpha = torch.log_softmax(scores, dim=1), self.gate_max * gate
        return mix(among.ids, log_r.exp(), alpha), log_r, alpha

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        among = self.rule.probe(context)
        values = self.control_gradient(value_of.each(context, among))
        unit = self.learning.reliability.factor * standardised(
            values
        )  # the step does not depend on the loss's scale
        log_p = torch.log_softmax(among.log_p, dim=1)  # over the candidates, as r is
        metrics: dict[str, float] = {}
        for _ in range(self.learning.updates):
            targets, log_r, alpha = self._targets(among)
            metrics = metrics or self.gain(
                among, targets, values
            )  # before the first update: a batch that it has not seen
            value = (targets.mass * unit).sum(dim=1)
            price = self.anchor * (log_r.exp() * (log_r - log_p)).sum(dim=1) + self.gate_price
            # Clamped: the slope of the entropy is infinite at zero mass, where a closed gate puts
            # every other candidate.
            entropy = -(targets.mass * targets.mass.clamp_min(1e-12).log()).sum(dim=1)
            self.descend(-distributed.mean(value - alpha * price + self.entropy_bonus * entropy))
        return Learned(metrics)


@ARMS.declare(
    "ascent", "the paper's designer: a network emits targets and gate, and climbs the value"
)
class AscentArm(NetworkArm, CandidatesArm):
    cost = Cost(candidates=True, network=True)

    gate_max: Annotated[float, Field(ge=0, le=1)] = 0.5
    """alpha_max: the most mass that may leave the true token (eq. 15)."""
    entropy_bonus: NonNegativeFloat = 0.0
    """lambda of the regulariser R(phi): entropy of the targets."""
    anchor: NonNegativeFloat = 0.0
    """Price of a nat of KL from the targets to the learner, in standard deviations of the token
    value."""
    gate_price: NonNegativeFloat = 0.0
    """Price of an open gate, in standard deviations of the token value."""

    def build(self, site: Site) -> CandidateDesigner:
        return CandidateDesigner(
            self.network(site, gated=True),
            site.embedding,
            Anchored(self.candidates, gate_max=self.gate_max),
            self.learning(site),
            entropy_bonus=self.entropy_bonus,
            anchor=self.anchor,
            gate_price=self.gate_price,
        )


class FieldDesigner(Scored):
    """Ours: the network regresses ``s / std(s)``; the task follows by a rule.

    Args:
        network, embedding, learning: as :class:`Scored`; the network has no extra output.
        rule: what follows from the predicted values.
        replay: batches that are learned from, at least 1: this one and the ones before it, whose
            values are a little out of date.
    """

    def __init__(
        self,
        network: CandidateScorer,
        embedding: Tensor,
        rule: TokenRule,
        learning: Learning,
        *,
        replay: int = 1,
    ) -> None:
        super().__init__(network, embedding, rule, learning)
        self.remembered: deque[Lesson] = deque(maxlen=replay - 1)

    def state_dict(self) -> State:
        """That of the network, and what each process remembers of its part of the batches, by rank.

        Where something is remembered, all processes ask for it together.
        """
        mine = [vars(lesson.to("cpu")) for lesson in self.remembered]
        return {
            **super().state_dict(),
            "remembered": distributed.all_gather_object(mine) if mine else [],
        }

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        held = state.get("remembered", [])
        mine = held[distributed.rank()] if len(held) == distributed.world() else []
        lessons = (Lesson(**lesson).to(self.embedding.device) for lesson in mine)
        self.remembered = deque(lessons, maxlen=self.remembered.maxlen)

    def propose(self, context: Context) -> SoftTargets:
        """The rule on the predicted values."""
        among = self.rule.probe(context)
        return self._shape(among, self.score(among)[0])

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        """``updates`` regression steps on the exact values, of this batch first and of remembered
        ones after it.
        """
        among = self.rule.probe(context)
        values = self.control_gradient(value_of.each(context, among))
        predicted = self.score(among)[
            0
        ].detach()  # what the network says of a batch that it has not seen
        metrics = self.gain(among, self._shape(among, predicted), values)
        metrics["correlation"] = correlation(predicted, values)
        lessons = [
            Lesson.of(context, among.ids, among.log_p, standardised(values)),
            *reversed(self.remembered),
        ]
        for update in range(self.learning.updates):
            lesson = lessons[update % len(lessons)]
            assert lesson.values is not None
            predicted, _ = self.network(lesson, self.embedding)
            self.descend(
                distributed.mean(
                    nn.functional.smooth_l1_loss(predicted, lesson.values, reduction="none")
                )
            )
        self.remembered.append(lessons[0])
        return Learned(metrics)

    def _shape(self, among: Candidates, predicted: Tensor) -> SoftTargets:
        return self.rule.task(among, self.learning.reliability.factor * predicted)


class ReplayArm(NetworkArm):
    """Of designers that regress values."""

    replay: PositiveInt = 1
    """Batches that the network learns from: the present one and remembered ones."""

    def field(self, site: Site, rule: TokenRule) -> FieldDesigner:
        learning = self.learning(site)
        return FieldDesigner(self.network(site), site.embedding, rule, learning, replay=self.replay)


@ARMS.declare(
    "field", "a network regresses the token values, targets follow by the anchored rule (ours)"
)
class FieldArm(ReplayArm, AnchoredArm):
    cost = Cost(candidates=True, network=True)

    def build(self, site: Site) -> FieldDesigner:
        return self.field(site, self.targets)


@ARMS.declare(
    "weight_field",
    "one-hot targets, tokens weighted by the value that a network predicts (ours)",
)
class WeightFieldArm(ReplayArm, TiltArm):
    cost = Cost(network=True, weighted=True)

    def build(self, site: Site) -> FieldDesigner:
        return self.field(site, TokenWeights(self.tilt))
