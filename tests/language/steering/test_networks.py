"""Designers that learn, and all that they leave alone."""

import torch

from tests.language.conftest import downstream, tiny_batch, tiny_learner
from tests.language.steering.dictated import Dictated, learned, values_like
from vpretrain.language.steering.ascent import CandidateDesigner, Prices
from vpretrain.language.steering.networks import FieldDesigner
from vpretrain.language.steering.rules import Anchored
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Estimate
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator


def test_field_learns_the_values_it_is_shown():
    learner = tiny_learner()
    designer = learned(FieldDesigner, learner)
    context = learner.forward(tiny_batch(rows=6))
    target = learner.anatomy.head.weight.detach().sum(dim=1)  # a function of the candidate alone

    class ByToken:
        def each(self, context, task):
            return [Estimate(torch.zeros(()), (target[task.ids],))] * 2

    first = designer.learn(context, ByToken()).metrics["correlation"]
    for _ in range(60):
        last = designer.learn(context, ByToken()).metrics
    assert last["correlation"] > max(0.9, first) and last["gain"] > 0


def test_learning_leaves_every_learner_gradient_and_the_rng_alone():
    learner = tiny_learner()
    marker = next(iter(learner.aligned.values()))
    marker.grad = torch.full_like(marker, 7.0)
    value_estimator = ValueEstimator(learner, Alignment("dot"), ESTIMATORS["central_difference"])
    state = torch.get_rng_state()
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    context = learner.forward(tiny_batch())
    for designer in (
        ExactDesigner(Anchored(6), Reliability(True)),
        learned(FieldDesigner, learner),
        learned(CandidateDesigner, learner, prices=Prices(entropy_bonus=0.1)),
    ):
        torch.set_rng_state(state)
        grad = marker.grad
        value_estimator.update([downstream(learner), downstream(learner, seed=8)], None, 0.0)
        designer.learn(context, value_estimator)
        designer.make_task(context, value_estimator)
        assert marker.grad is grad and (marker.grad == 7).all()
        assert all(p.grad is None for p in learner.model.parameters() if p is not marker)
        assert all(torch.equal(p, before[name]) for name, p in learner.model.named_parameters())
        assert torch.equal(torch.get_rng_state(), state)


def test_state_round_trips():
    learner = tiny_learner()
    context = learner.forward(tiny_batch())
    value_of = Dictated(values_like(context, 6, 1), values_like(context, 6, 2))
    for kind, options in ((FieldDesigner, {}), (CandidateDesigner, {"prices": Prices()})):
        one, other = (learned(kind, learner, **options) for _ in range(2))
        one.learn(context, value_of)
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.make_task(context, None).mass, other.make_task(context, None).mass)
