"""Documents weighted by their value to the feedback, and their tokens by their excess loss over a
reference model (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
class ExcessCandidates(Candidates):
    """One-hot targets on the true tokens, with the tokens' excess losses.

    Args:
        excess: ``[N]``, the excess loss in standard deviations over the batch, centred.
    """

    excess: Tensor


@dataclass(frozen=True)
class ExcessWeights(TokenRule):
    """The weights of documents by value times weights of tokens by excess loss.

    Values come from the feedback's gradient at the present learner: they tell right documents from
    wrong ones, and their reliability is known. The excess loss comes from a model that was trained
    on all of the feedback: it tells the tokens of a document apart. Values are shrunk by their
    reliability, so their standard deviation is about that reliability, and the tilt of the tokens
    is multiplied by it. Where no token would have a weight above 0, documents alone are weighted.

    Args:
        reference: provides the losses to compare with.
        documents: the rule for the documents.
        tilt: weight of a token per standard deviation of its excess loss, >= 0.
    """

    reference: Reference
    documents: GroupWeights
    tilt: float
    weighted = True

    def probe(self, context: Context) -> ExcessCandidates:
        plain = super().probe(context)
        excess = self.reference.excess(plain)
        return ExcessCandidates(plain.ids, plain.mass, context, excess - distributed.mean(excess))

    def task(self, probe: Candidates, values: Tensor) -> SoftTargets:
        assert isinstance(probe, ExcessCandidates)
        reliability = distributed.std(values).clamp(max=1)
        token_weights = tilted(reliability * probe.excess, self.tilt)
        document_weights = self.documents.task(probe, values).mass
        mass = document_weights * token_weights[:, None]
        some = distributed.total(mass.sum()) > 0
        return SoftTargets(probe.ids, torch.where(some, mass, document_weights))


class ExcessDesigner(ExactDesigner[Context, Candidates, SoftTargets]):
    """An exact designer whose rule reads a reference, which is trained before the first step.

    Its gain is that of the documents' weights.

    Args:
        rule: makes the task.
        reliability: how values shrink.
    """

    def __init__(self, rule: ExcessWeights, reliability: Reliability) -> None:
        super().__init__(rule, reliability)
        self.reference, self.documents = rule.reference, rule.documents

    @property
    def gain_rule(self) -> GroupWeights:
        """The weights of documents alone: the reference, and so the weights of tokens, were trained
        on all of the feedback, the half that values a task of the other one included."""
        return self.documents

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
