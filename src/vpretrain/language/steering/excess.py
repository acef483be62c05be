"""Documents weighted by their value to the feedback, and their tokens by their excess loss over a
reference model (ours)."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeFloat
from torch import Tensor

from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.targets import SoftTargets
from vpretrain.language.steering.arms import ARMS, Site
from vpretrain.language.steering.reference import Reference, ReferenceArm
from vpretrain.language.steering.rules import Candidates, GroupWeights, TokenRule
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Prepared, State
from vpretrain.method.rules import tilted
from vpretrain.system import distributed


@dataclass(frozen=True)
class WithExcess(Candidates):
    """The true tokens, with what the reference makes of them.

    Args:
        excess: ``[N]``, the excess loss in standard deviations over the batch, centred.
    """

    excess: Tensor


@dataclass(frozen=True)
class ExcessWeights(TokenRule):
    """The weights of documents by value times weights of tokens by excess loss, with mean 1.

    A value is the gradient of the feedback at the present learner: it tells right documents from
    wrong ones, and how far halves of the feedback agree. An excess loss is what a model that has
    learned from all of the feedback finds likelier: it tells tokens apart. Values shrink by their
    reliability, which is then their standard deviation, and the tilt of the tokens shrinks with it.

    Args:
        reference: provides the losses to compare with.
        documents: the rule for the documents.
        tilt: weight of a token per standard deviation of its excess loss, >= 0.
    """

    reference: Reference
    documents: GroupWeights
    tilt: float

    def probe(self, context: Context) -> WithExcess:
        plain = super().probe(context)
        excess = self.reference.excess(plain)
        return WithExcess(plain.ids, plain.mass, context, excess - distributed.mean(excess))

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        assert isinstance(probe, WithExcess)
        trust = distributed.std(values).clamp(max=1)
        tokens = tilted(trust * probe.excess, self.tilt)
        mass = self.documents.task(probe, values).mass * tokens[:, None]
        return SoftTargets(probe.ids, mass / distributed.mean(mass))


class ExcessDesigner(ExactDesigner[Context, Candidates, SoftTargets]):
    """An exact designer whose rule reads a reference, which is trained before the first step.

    Args:
        rule: makes the task.
        reliability: how values shrink.
    """

    def __init__(self, rule: ExcessWeights, reliability: Reliability) -> None:
        super().__init__(rule, reliability)
        self.reference = rule.reference

    def prepare(self) -> Prepared:
        return self.reference.train()

    def state_dict(self) -> State:
        return {**super().state_dict(), **self.reference.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.reference.load_state_dict(state)


@ARMS.declare(
    "excess_weights",
    "each document weighted by its value to the examples, and each token by how much likelier a "
    "model fine-tuned on them finds it (not from the paper)",
)
class ExcessWeightsArm(ReferenceArm):
    """Document weights times Rho-1's excess loss as token weights."""

    tilt: NonNegativeFloat = 1.5
    """c of the documents: see ``document_weights``."""
    token_tilt: NonNegativeFloat = 1.0
    """Weight of a token per standard deviation of its excess loss."""

    def build(self, site: Site) -> ExcessDesigner:
        documents = GroupWeights(self.tilt, by="document")
        rule = ExcessWeights(self.reference_for(site), documents, self.token_tilt)
        return ExcessDesigner(rule, site.reliability)
