"""A wrapped learner is the learner, but for what its subclass changes."""

import torch

from tests.language.conftest import tiny_batch, tiny_learner
from vpretrain.language.learner.targets import one_hot
from vpretrain.method.wrappers import WrappedLearner


class Doubled(WrappedLearner):
    def loss(self, context, task):
        return 2 * super().loss(context, task)


def test_all_but_the_loss_is_the_learners():
    learner = tiny_learner()
    wrapped = Doubled(learner)
    assert wrapped.model is learner.model and wrapped.aligned is learner.aligned
    context = wrapped.forward(tiny_batch())
    task = one_hot(context.labels)
    assert torch.equal(wrapped.loss(context, task), 2 * learner.loss(context, task))
    parameters = dict(learner.aligned)
    one, other = (each.objective(context, task) for each in (wrapped, learner))
    assert torch.equal(one.loss(parameters, one.inputs), other.loss(parameters, other.inputs))


def test_what_the_learner_keeps_is_kept():
    learner = tiny_learner()
    calls = []
    learner.after_step = calls.append
    learner.state_dict = lambda: {"teacher": 1}
    learner.load_state_dict = calls.append
    wrapped = Doubled(learner)
    wrapped.after_step(0.5)
    wrapped.load_state_dict(wrapped.state_dict())
    assert calls == [0.5, {"teacher": 1}]
