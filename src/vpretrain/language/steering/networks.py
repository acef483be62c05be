"""Designers that learn: a small network scores the candidates of every token.

Those that climb the value are in :mod:`vpretrain.language.steering.ascent`. ``FieldDesigner`` is
ours: since the value is linear in the target, the network *regresses* the token values, and the
target follows from them by a rule.

Shapes: N predicted tokens, K candidates, V vocabulary, D learner width.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import deque
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from vpretrain.config.recipe import Layers
from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.targets import SoftTargets
from vpretrain.language.steering.arms import ARMS, Cost, LanguageArm, Site, TiltArm
from vpretrain.language.steering.rules import AnchoredArm, Candidates, TokenRule, TokenWeights
from vpretrain.language.steering.scorer import CandidateScorer, Lesson, scorer_cost
from vpretrain.method.network import LearnedDesigner, Learning
from vpretrain.method.reliability import correlation
from vpretrain.method.roles import Bounds, Learned, State, ValueFunction, detached
from vpretrain.method.rules import standardised
from vpretrain.system import distributed
from vpretrain.system.contexts import own_random_state

log = logging.getLogger(__name__)


class Scored(LearnedDesigner[Context, SoftTargets]):
    """A designer whose network scores candidates.

    Args:
        network: ``phi``.
        rule: gives candidates, one-hot targets, and figures of targets.
        learning: see :class:`vpretrain.method.network.Learning`; values do not depend on ``phi``,
            so that one estimate serves every update.
    """

    def __init__(self, network: nn.Module, rule: TokenRule, learning: Learning) -> None:
        super().__init__(network, learning)
        self.rule = rule

    @property
    def bounds(self) -> Bounds:
        return self.rule.bounds

    def baseline_task(self, context: Context) -> SoftTargets:
        return self.rule.baseline_task(context)

    @abstractmethod
    def score(self, among: Candidates) -> tuple[Tensor, Tensor]:
        """Scores ``[N, K]`` and gate ``[N]`` of the network, with their graph to ``phi``."""

    def predicted_values(self, context: Context) -> Tensor:
        """``[N, K]`` scores of the candidates."""
        with torch.no_grad():
            return self.score(self.rule.probe(context))[0]

    def gain(self, among: Candidates, targets: SoftTargets, values: Tensor) -> dict[str, float]:
        """Value under this feedback, over one-hot targets, of targets made before it, and what the
        rule measures of them. With a memory this feedback is an average that shares its past with
        what the network has learned from, and noise may gain too."""
        targets = detached(targets)
        return {
            "gain": float(distributed.total((targets.mass * values).sum() - values[:, 0].sum())),
            "value_baseline": float(distributed.total(values[:, 0].sum())),
            **self.rule.metrics(among, targets, values),
            **self.learning.reliability.metrics(),
        }


class HiddenDesigner(Scored):
    """A designer whose network reads the learner's final hidden states.

    Attributes:
        embedding: the learner's output embedding ``[V, D]``; read, never trained here.
    """

    embedding: Tensor

    def score(self, among: Candidates) -> tuple[Tensor, Tensor]:
        return self.network(Lesson.of(among.context, among.ids, among.log_p), self.embedding)


class NetworkArm(LanguageArm):
    """The keys of arms whose designer has a network."""

    hidden: PositiveInt = 256
    layers: Layers = 6
    heads: PositiveInt = 4
    learning_rate: NonNegativeFloat = 1e-4
    updates: PositiveInt = 1
    """Steps of the designer's network a meta step: the values that it learns from do not depend on
    it."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            message = f"designer.heads is {self.heads}, which does not divide designer.hidden"
            raise ValueError(f"{message}, {self.hidden}")
        return self

    def learning(self, site: Site) -> Learning:
        return Learning(self.learning_rate, site.reliability, self.updates)


class TransferableArm(NetworkArm):
    """The keys of arms whose designer can start as an earlier run left it."""

    learner_size: ClassVar[tuple[str, int, str]]
    """What the learner decides of the network's shape: a parameter, its axis, and a word on it."""

    init_from: Path | None = None
    """Folder of a finished run whose designer this run starts with; its learner must have used the
    same tokenizer."""
    frozen: bool = False
    """Whether that designer stays as it is: it uses no feedback, and there are no meta steps."""

    @model_validator(mode="after")
    def _freezes_something(self) -> Self:
        if self.init_from is None and self.frozen:
            message = "designer.init_from names no run, and only the designer of a run can be "
            raise ValueError(f"{message}frozen")
        return self

    @abstractmethod
    def build(self, site: Site) -> Scored: ...


class HiddenArm(TransferableArm):
    """The keys of arms whose network reads the learner's final hidden states."""

    learner_size: ClassVar[tuple[str, int, str]] = ("candidate.weight", 1, "width")

    companion: bool = False
    """Whether that designer goes on reading the hidden states of the model it was trained with,
    which then runs beside the learner: for a learner of another size or origin."""

    @model_validator(mode="after")
    def _accompanies_something(self) -> Self:
        if self.init_from is None and self.companion:
            message = "designer.init_from names no run, and only the designer of a run can have a "
            raise ValueError(f"{message}companion")
        return self

    @abstractmethod
    def build(self, site: Site) -> HiddenDesigner: ...

    def network(self, site: Site, *, gated: bool = False) -> CandidateScorer:
        """With fresh weights; the learner's random numbers are the same in every arm."""
        sizes = {"hidden": self.hidden, "layers": self.layers, "heads": self.heads}
        with own_random_state(site.seed):
            scorer = CandidateScorer(site.embedding.shape[1], **sizes, gated=gated)
        return scorer.to(site.learner.device)


class FieldDesigner(HiddenDesigner):
    """Ours: the network regresses ``s / std(s)``; the task follows by a rule.

    Args:
        network, learning: as :class:`Scored`; the network has no extra output.
        embedding: as :class:`HiddenDesigner`.
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
        super().__init__(network, rule, learning)
        self.embedding = embedding
        self.remembered: deque[Lesson] = deque(maxlen=replay - 1)

    def state_dict(self) -> State:
        """That of the network, and what each process remembers of its part of the batches, by rank.

        Where something is remembered, all processes ask for it together.
        """
        lessons = [vars(lesson.to("cpu")) for lesson in self.remembered]
        everywhere = distributed.all_gather_object(lessons) if lessons else []
        return {**super().state_dict(), "remembered": everywhere}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        saved = state.get("remembered", [])
        here = saved[distributed.rank()] if len(saved) == distributed.world() else []
        if saved and not here and distributed.rank() == 0:
            log.warning(
                "the batches that designer.replay remembers are of %d processes, and there are %d "
                "now: the network goes on without them",
                len(saved),
                distributed.world(),
            )
        lessons = (Lesson(**lesson).to(self.embedding.device) for lesson in here)
        self.remembered = deque(lessons, maxlen=self.remembered.maxlen)

    def propose(self, context: Context) -> SoftTargets:
        """The rule on the predicted values."""
        among = self.rule.probe(context)
        return self._shape(among, self.score(among)[0])

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        """``updates`` regression steps on exact values: this batch first, then remembered ones."""
        among = self.rule.probe(context)
        values = self.control_gradient(value_of.each(context, among))
        predicted = self.score(among)[0].detach()  # of a batch that it has not learned from
        metrics = self.gain(among, self._shape(among, predicted), values)
        metrics["correlation"] = correlation(predicted, values)
        lesson = Lesson.of(context, among.ids, among.log_p, standardised(values))
        lessons = [lesson, *reversed(self.remembered)]
        for update in range(self.learning.updates):
            lesson = lessons[update % len(lessons)]
            assert lesson.values is not None
            predicted, _ = self.network(lesson, self.embedding)
            losses = nn.functional.smooth_l1_loss(predicted, lesson.values, reduction="none")
            self.descend(distributed.mean(losses))
        self.remembered.append(lessons[0])
        return Learned(metrics)

    def _shape(self, among: Candidates, predicted: Tensor) -> SoftTargets:
        return self.rule.task(among, self.learning.reliability.factor * predicted)


class ReplayArm(HiddenArm):
    """The keys of arms whose network regresses values."""

    replay: PositiveInt = 1
    """Batches that the network learns from: the present one and remembered ones."""

    def field(self, site: Site, rule: TokenRule) -> FieldDesigner:
        learning = self.learning(site)
        return FieldDesigner(self.network(site), site.embedding, rule, learning, replay=self.replay)


@ARMS.declare(
    "field",
    "as `closed_form`, with values that a network predicts (not from the paper)",
)
class FieldArm(ReplayArm, AnchoredArm):
    cost = Cost(candidates=True, network=scorer_cost)

    def build(self, site: Site) -> FieldDesigner:
        return self.field(site, self.targets)


@ARMS.declare(
    "weight_field",
    "as `token_weights`, with values that a network predicts (not from the paper)",
)
class WeightFieldArm(ReplayArm, TiltArm):
    cost = Cost(network=scorer_cost, weighted=True)

    def build(self, site: Site) -> FieldDesigner:
        return self.field(site, TokenWeights(self.tilt))
