"""Designers that climb the value."""

from tests.language.conftest import tiny_batch, tiny_learner
from tests.language.steering.dictated import Dictated, learned, values_like
from vpretrain.language.steering.ascent import CandidateDesigner, Prices
from vpretrain.language.steering.rules import Anchored
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.reliability import Reliability


def test_ascent_climbs_the_value():
    learner = tiny_learner()
    designer = learned(CandidateDesigner, learner, prices=Prices())
    context = learner.forward(tiny_batch(rows=6))
    value_of = Dictated(*[values_like(context, 6, 3)] * 2)
    gains = [designer.learn(context, value_of).metrics["gain"] for _ in range(60)]
    assert gains[-1] > 3 * abs(gains[0]) and gains[-1] > 0


def test_an_anchored_ascent_comes_to_the_closed_form():
    """With exact values, a free network would climb to where the rule is at once: the field's and
    the paper's meet.
    """
    learner = tiny_learner()
    context = learner.forward(tiny_batch(rows=4))
    values = values_like(context, 6, 3)
    designer = learned(CandidateDesigner, learner, prices=Prices(anchor=1.0), updates=100)
    designer.learn(context, Dictated(values, values))
    gain = designer.learn(context, Dictated(values, values)).metrics["gain"]
    rule = ExactDesigner(Anchored(6, clip=float("inf")), Reliability(shrink=True))
    assert gain > 0.3 * rule.learn(context, Dictated(values, values)).metrics["gain"]
