"""Document weights by value times token weights by excess loss."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.language.conftest import tiny_batch, tiny_learner
from tests.language.steering.dictated import Dictated
from tests.run.test_train import tiny_recipe, trained
from vpretrain.language import Language
from vpretrain.language.steering.excess import ExcessDesigner, ExcessWeights
from vpretrain.language.steering.reference import Reference
from vpretrain.language.steering.rules import GroupWeights
from vpretrain.method.reliability import Reliability
from vpretrain.method.rules import standardised
from vpretrain.run.run import Run
from vpretrain.system.errors import UserError


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


def probed(tilt=1.0):
    learner, other, batch = tiny_learner(), tiny_learner(seed=1), tiny_batch()
    rule = ExcessWeights(Reference(other), GroupWeights(1.5, by="document"), tilt)
    excess = (learner.token_losses(batch)[0] - other.token_losses(batch)[0]).detach()
    z = (excess - excess.mean()) / excess.std(correction=0)
    return rule, rule.probe(learner.forward(batch)), z.clamp(-3, 3)


def test_zeros_give_the_baseline_task_bit_for_bit():
    rule, probe, _ = probed()
    task = rule.task(probe, torch.zeros_like(probe.mass))
    assert torch.equal(task.mass, rule.baseline_task(probe.context).mass)


def test_weights_are_those_of_the_document_times_those_of_the_token():
    rule, probe, z = probed()
    values = standardised(torch.randn(probe.mass.shape, generator=torch.manual_seed(0)))
    documents = rule.documents.task(probe, values).mass[:, 0]
    expected = documents * (1 + z).clamp_min(0)
    torch.testing.assert_close(rule.task(probe, values).mass[:, 0], expected)


def test_both_move_as_far_as_the_feedback_is_reliable():
    rule, probe, z = probed()
    values = 0.1 * standardised(torch.randn(probe.mass.shape, generator=torch.manual_seed(0)))
    documents = rule.documents.task(probe, values).mass[:, 0]
    expected = documents * (1 + 0.1 * z)
    torch.testing.assert_close(rule.task(probe, values).mass[:, 0], expected)


def test_the_gain_is_that_of_the_documents_alone():
    """The reference has seen all of the feedback, the half that values the other's task too."""
    rule, probe, _ = probed()
    draw = torch.manual_seed(0)
    gradients = [torch.randn(probe.mass.shape, generator=draw) for _ in range(2)]
    gains = []
    for excess in (probe.excess, sum(gradients)[:, 0]):
        told = replace(rule, reference=SimpleNamespace(excess=lambda _, excess=excess: excess))
        designer = ExcessDesigner(told, Reliability(shrink=True))
        gains.append(designer.learn(probe.context, Dictated(*gradients)).metrics["gain"])
    assert gains[0] == gains[1]


def test_documents_alone_are_weighted_where_no_token_would_have_weight():
    """One document has all of the weight, and all of its tokens a weight of 0."""
    rule, probe, _ = probed()
    rule = replace(rule, documents=GroupWeights(6.0, by="document"))
    document = probe.context.document
    best = document == document.bincount().argmin()
    values = standardised(torch.where(best, 3.0, -1.0)[:, None])
    excess = standardised(torch.where(best, -5.0, 1.0))
    task = rule.task(replace(probe, excess=excess - excess.mean()), values)
    assert torch.equal(task.mass, rule.documents.task(probe, values).mass)
    assert not task.mass[~best].any()


def test_the_reference_is_trained_first_and_comes_back_with_a_checkpoint(materials):
    words = ["arm=excess_weights", "budget.steps=2", "designer.reference_epochs=1"]
    first = trained(materials, *words)[1].history[0]
    assert first["prepared_tokens"] > 0 and {"gain", "weight_spread", "reliability"} <= first.keys()
    recipe = tiny_recipe(*words)
    run = Run(recipe, Language().build(recipe, materials), step0={})
    run.start()
    resumed = Run(recipe, Language().build(recipe, materials), resume=run.state.state_dict())
    resumed.start()
    models = [each.parts.designer.reference.learner.model for each in (run, resumed)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_another_direction_is_no_control_of_a_designer_that_reads_the_rows(materials):
    kind = ("designer.kind=excess_weights",)
    for words in (["arm=reversed_feedback"], ["arm=rho1", "feedback.control=random"]):
        with pytest.raises(UserError, match="reads the feedback rows themselves"):
            Language().build(tiny_recipe(*words, *kind), materials)
    right, wrong = (
        Language().build(tiny_recipe(arm, *kind), materials).designer.reference.documents
        for arm in ("arm=excess_weights", "arm=shuffled_feedback")
    )
    assert sum(a.ids != b.ids for a, b in zip(right, wrong, strict=True)) > len(right) / 2
