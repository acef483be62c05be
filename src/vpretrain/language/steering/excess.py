"""Tokens weighted by their excess loss over a reference model, as far as it pays (ours)."""

from __future__ import annotations

from pydantic import NonNegativeFloat

from vpretrain.language.learner.causal import Context
from vpretrain.language.learner.targets import SoftTargets
from vpretrain.language.steering.arms import ARMS, Site, TiltArm
from vpretrain.language.steering.reference import ExcessLoss, Reference, ReferenceArm
from vpretrain.language.steering.rules import Candidates, TokenRule, TokenWeights
from vpretrain.method.price import SpreadPrice
from vpretrain.method.roles import Bounds, Learned, State, ValueFunction


class PricedExcessLoss(ExcessLoss):
    """Weights by excess loss, scaled down where plain training serves the feedback anyway.

    The excess loss says which tokens are like the feedback, from all that the reference has learned
    of it. The gradient of the feedback, at meta steps, says what these weights gain beyond plain
    training, and :class:`~vpretrain.method.price.SpreadPrice` how far they pay.

    Args:
        reference: provides the losses to compare with.
        rule: makes weights from excess losses.
        price: how far the weights pay.
    """

    uses_feedback = True

    def __init__(self, reference: Reference, rule: TokenRule, price: SpreadPrice) -> None:
        super().__init__(reference, rule)
        self.price = price

    @property
    def bounds(self) -> Bounds:
        return self.rule.bounds

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        """The weights that pay by the latest meta step."""
        probe = Candidates.among(context, 1, weighted=True)
        return self.rule.task(probe, self.price.fraction * self.excess(probe))

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        """Updates the price of the full weights by the gradient of the feedback."""
        probe = Candidates.among(context, 1, weighted=True)
        excess = self.excess(probe)
        full = self.rule.task(probe, excess)
        values = value_of(context, probe).gradient[0]
        figures = self.price.update(full.mass[:, 0], values[:, 0])
        task = self.rule.task(probe, self.price.fraction * excess)
        return Learned({**self.rule.metrics(probe, task, values), **figures}, task)

    def state_dict(self) -> State:
        return {**super().state_dict(), "price": self.price.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.price.load_state_dict(state["price"])


@ARMS.declare(
    "excess_weights",
    "each token weighted by how much likelier a model fine-tuned on the examples finds it (not "
    "from the paper)",
)
class ExcessWeightsArm(ReferenceArm, TiltArm):
    """Rho-1's excess loss as weights in place of a selection, and no more of them than pays."""

    tilt: NonNegativeFloat = 1.0
    """c: weight of a token per standard deviation of its excess loss."""

    def build(self, site: Site) -> PricedExcessLoss:
        return PricedExcessLoss(self.reference_for(site), TokenWeights(self.tilt), SpreadPrice())
