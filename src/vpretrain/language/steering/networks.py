"""Designers with a trained network that scores the candidates of every token.

Designers trained by ascent on the value are in :mod:`vpretrain.language.steering.ascent`.
``FieldDesigner`` is ours: since the value is linear in the target, the network *regresses* the
token values, and a rule turns them into the target.

Shapes: N predicted tokens, K candidates, V vocabulary, D learner width.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
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
from vpretrain.language.steering.scorer import CandidateScorer, ScorerInputs, scorer_cost
from vpretrain.method.network import LearnedDesigner, Learning
from vpretrain.method.recent import Recent
from vpretrain.method.reliability import correlation
from vpretrain.method.roles import (
    Bounds,
    Estimate,
    Learned,
    State,
    ValueFunction,
    detached,
    mean_value,
)
from vpretrain.method.rules import standardised
from vpretrain.system import distributed
from vpretrain.system.contexts import own_random_state

log = logging.getLogger(__name__)


class Scored(LearnedDesigner[Context, SoftTargets]):
    """A designer whose network scores candidates.

    Args:
        network: ``phi``.
        rule: gives candidates, one-hot targets, and metrics of targets.
        learning: see :class:`vpretrain.method.network.Learning`. Values do not depend on ``phi``,
            so one estimate serves all updates.
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
    def score(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Scores ``[N, K]`` and gate ``[N]`` of the network, with their graph to ``phi``."""

    def predicted_values(self, context: Context) -> Tensor:
        """Scores ``[N, K]`` of the candidates, without gradients."""
        with torch.no_grad():
            return self.score(self.rule.probe(context))[0]

    def gain(
        self,
        candidates: Candidates,
        targets: SoftTargets,
        values: Tensor,
        of_candidates: Sequence[Estimate],
    ) -> dict[str, float]:
        """Metrics of targets made before this feedback: their gain in value over one-hot targets
        (to first order, if the alignment is not linear), and the rule's own. With a memory, the
        feedback is an average that shares its past with what the network was trained on, so that
        noise can gain too."""
        targets = detached(targets)
        return {
            "gain": float(distributed.total((targets.mass * values).sum() - values[:, 0].sum())),
            "value_baseline": mean_value(of_candidates),
            **self.rule.metrics(candidates, targets, values),
            **self.learning.reliability.metrics(),
        }


class HiddenDesigner(Scored):
    """A designer whose network reads the learner's final hidden states.

    Attributes:
        embedding: the learner's output embedding ``[V, D]``, which is not trained here.
    """

    embedding: Tensor

    def score(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        return self.network(ScorerInputs.of(candidates), self.embedding)


class NetworkArm(LanguageArm):
    """The keys of arms whose designer has a network."""

    hidden: PositiveInt = 256
    layers: Layers = 6
    heads: PositiveInt = 4
    learning_rate: NonNegativeFloat = 1e-4
    updates: PositiveInt = 1
    """Optimizer steps of the designer's network at a meta step, all on the same values."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            message = f"designer.heads is {self.heads}, which does not divide designer.hidden"
            raise ValueError(f"{message}, {self.hidden}")
        return self

    def learning(self, site: Site) -> Learning:
        return Learning(self.learning_rate, site.reliability, self.updates)


class TransferableArm(NetworkArm):
    """The keys of arms whose designer can be initialised from an earlier run."""

    learner_size: ClassVar[tuple[str, int, str]]
    """The axis of the network whose size the learner decides: a parameter's name, its axis, and the
    word for it in messages."""

    init_from: Path | None = None
    """Folder of a finished run whose designer this run starts from; its learner must have the same
    tokenizer."""
    frozen: bool = False
    """Whether the designer of ``init_from`` is not trained further: it uses no feedback, and there
    are no meta steps."""

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
    """Whether the designer of ``init_from`` keeps reading the hidden states of the model it was
    trained with, which then runs beside the learner; for learners of another size or origin."""

    @model_validator(mode="after")
    def _accompanies_something(self) -> Self:
        if self.init_from is None and self.companion:
            message = "designer.init_from names no run, and only the designer of a run can have a "
            raise ValueError(f"{message}companion")
        return self

    @abstractmethod
    def build(self, site: Site) -> HiddenDesigner: ...

    def network(self, site: Site, *, gated: bool = False) -> CandidateScorer:
        """A new network. It has its own random state, so that the learner's random numbers are the
        same in every arm."""
        sizes = {"hidden": self.hidden, "layers": self.layers, "heads": self.heads}
        with own_random_state(site.seed):
            scorer = CandidateScorer(site.embedding.shape[1], **sizes, gated=gated)
        return scorer.to(site.learner.device)


class FieldDesigner(HiddenDesigner):
    """A designer (ours) whose network regresses the token values ``s / std(s)``; a rule turns the
    predicted values into the task.

    Args:
        network, learning: see :class:`Scored`; the network has no gate.
        embedding: see :class:`HiddenDesigner`.
        rule: turns predicted values into the task.
        replay: number of batches to train on, at least 1: the current one, and earlier ones whose
            values are slightly out of date.
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
        self.remembered: deque[ScorerInputs] = deque(maxlen=replay - 1)

    def state_dict(self) -> State:
        """The network's state, and the remembered batches of each process, by rank.

        A collective call if batches are remembered.
        """
        batches = [vars(inputs.to("cpu")) for inputs in self.remembered]
        everywhere = distributed.all_gather_object(batches) if batches else []
        return {**super().state_dict(), "remembered": everywhere}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        saved = state["remembered"]
        here = saved[distributed.rank()] if len(saved) == distributed.world() else []
        if saved and not here and distributed.rank() == 0:
            log.warning(
                "the batches that designer.replay remembers are of %d processes, and there are %d "
                "now: the network goes on without them",
                len(saved),
                distributed.world(),
            )
        batches = (ScorerInputs(**inputs).to(self.embedding.device) for inputs in here)
        self.remembered = deque(batches, maxlen=self.remembered.maxlen)

    def propose(self, context: Context) -> SoftTargets:
        """The rule's task for the predicted values."""
        candidates = self.rule.probe(context)
        return self._shape(candidates, self.score(candidates)[0])

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        """Takes ``updates`` regression steps on exact values, of this batch first, then of
        remembered ones."""
        candidates = self.rule.probe(context)
        estimates = value_of.each(context, candidates)
        gradient = self.control_gradient(estimates)
        values = self.rule.values(candidates, gradient)
        predicted = self.score(candidates)[0].detach()  # before training on this batch
        targets = self._shape(candidates, predicted)
        metrics = self.gain(candidates, targets, gradient, estimates)
        metrics["correlation"] = correlation(predicted, values)
        present = ScorerInputs.of(candidates, standardised(values))
        batches = [present, *reversed(self.remembered)]
        for update in range(self.learning.updates):
            inputs = batches[update % len(batches)]
            assert inputs.values is not None
            predicted, _ = self.network(inputs, self.embedding)
            losses = nn.functional.smooth_l1_loss(predicted, inputs.values, reduction="none")
            self.descend(distributed.mean(losses))
        self.remembered.append(present)
        return Learned(metrics)

    def _shape(self, candidates: Candidates, predicted: Tensor) -> SoftTargets:
        values = self.learning.reliability.factor * (predicted - distributed.mean(predicted))
        task = self.rule.task(candidates, values)
        return Recent().normalised(self.rule, candidates, task)


class ReplayArm(HiddenArm):
    """The keys of arms whose network regresses values."""

    replay: PositiveInt = 1
    """Number of batches that the network is trained on: the current one and earlier ones."""

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
