"""Crops chosen by value: the figures are those of the slow definition, and what is chosen is what is
trained on."""

import weakref
from dataclasses import replace

import pytest
import torch

from tests.vision.conftest import tiny_recipe, trained
from vpretrain.method import vectors
from vpretrain.method.directional import double_backward
from vpretrain.method.estimators import one_sided
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.studies.doctor import doctor
from vpretrain.system import distributed
from vpretrain.vision import Vision
from vpretrain.vision.steering.chosen_crops import CropSelector
from vpretrain.vision.steering.views import BaselineViews, LearnedTargets


@pytest.fixture(scope="module")
def parts():
    recipe = tiny_recipe("arm=chosen_crops", "designer.candidates=3")
    return Vision().build(recipe, Vision().load(recipe))


def valued(learner, count=2, estimator=double_backward):
    """Along directions of no importance."""
    generator = torch.Generator().manual_seed(5)
    made = ValueEstimator(learner, Alignment("dot"), estimator)
    directions = [
        {name: torch.randn(p.shape, generator=generator) for name, p in learner.aligned.items()}
        for _ in range(count)
    ]
    made.update(directions, None, 0.0)
    return made


def test_a_picture_is_worth_what_its_own_part_of_the_loss_is(parts):
    learner, selector = parts.learner, parts.designer.selector
    context = learner.forward(next(parts.stream))
    value_of = valued(learner)
    result = selector.values([context], value_of)[:, 0]
    targets = context.teacher_targets
    for place in range(targets.shape[1]):
        alone = torch.zeros_like(targets)
        alone[:, place] = targets.shape[1] * targets[:, place]
        gradient = value_of.gradient(context, LearnedTargets(alone))
        for direction, figure in zip(value_of.feedback_gradients, result[:, place], strict=True):
            assert float(figure) == pytest.approx(
                float(vectors.inner(direction, gradient)), rel=1e-3, abs=1e-6
            )


@pytest.mark.parametrize("alignment", ["dot", "lower_bound"])
def test_a_value_does_not_depend_on_the_number_of_processes(parts, monkeypatch, alignment):
    """Two processes with the same pictures: their mean gradient is that of one."""
    learner, batch = parts.learner, next(parts.stream)
    value_of = valued(learner)
    value_of.alignment, value_of.step_size = Alignment(alignment), 0.1
    alone = parts.designer.selector.values([learner.forward(batch)], value_of)
    context = learner.forward(batch)
    context.batch = replace(batch, world=2)
    monkeypatch.setattr(
        distributed, "all_reduce", lambda tensors: [tensor.mul_(2) for tensor in tensors]
    )
    assert torch.allclose(parts.designer.selector.values([context], value_of), alone, rtol=1e-4)


def test_the_best_cut_of_each_picture_is_what_is_trained_on(parts):
    learner, selector = parts.learner, parts.designer.selector
    batch, value_of = next(parts.stream), valued(learner)
    state = torch.get_rng_state()
    selected = selector.select([batch], value_of, meta_step=True, used=True)
    assert torch.equal(torch.get_rng_state(), state)
    [chosen] = selected.batches
    contexts = [learner.forward(each) for each in selector.cuts(batch)]
    best = selector.values(contexts, value_of).mean(0).argmax(0)
    seen = learner.forward(chosen)
    for place, at in enumerate(best.tolist()):
        assert torch.equal(seen.global_views[:, place], contexts[at].global_views[:, place])
        assert torch.equal(seen.local_views[:, place], contexts[at].local_views[:, place])
    assert torch.equal(chosen.pixels, batch.pixels) and chosen.names == batch.names
    assert len(set(best.tolist())) > 1
    figures = selected.metrics
    assert figures["value_kept"] > figures["value_drawn"] and "gain" in figures
    assert torch.isfinite(learner.loss(seen, BaselineViews()))


def test_one_candidates_graph_is_in_memory_at_a_time(parts, monkeypatch):
    """One-sided differences read the student's own pass, whose graph would be kept for a loss."""
    learner, passes = parts.learner, []
    student_logits = learner._student_logits

    def watched(*views):
        assert not any(each() is not None for each in passes)
        scores = student_logits(*views)
        passes.append(weakref.ref(scores))
        return scores

    monkeypatch.setattr(learner, "_student_logits", watched)
    value_of = valued(learner, estimator=one_sided())
    parts.designer.selector.select([next(parts.stream)], value_of, meta_step=True, used=True)
    assert len(passes) == 3


def test_the_first_candidate_is_the_streams_own_cut(parts):
    batch = next(parts.stream)
    own, *others = parts.designer.selector.cuts(batch)
    assert own is batch and len(others) == 2
    assert len({each.seed for each in (own, *others)}) == 3


def test_noise_gains_nothing_on_average(parts):
    """Feedback whose halves have nothing in common: the cross-fitted gain is about zero, while what
    was kept looks better than what was drawn."""
    selector = CropSelector(parts.learner, 3)
    generator = torch.Generator().manual_seed(0)
    gains = []
    for _ in range(200):
        values = torch.randn(2, 3, 16, generator=generator)
        figures = selector.figures(values, values.mean(0).argmax(0))
        gains.append(figures["gain"])
        assert figures["value_kept"] > figures["value_drawn"]
    gains = torch.tensor(gains)
    assert abs(float(gains.mean())) < 4 * float(gains.std()) / len(gains) ** 0.5


def test_a_whole_run_hears_the_feedback_and_draws_what_the_plain_one_draws(materials):
    (chosen, its), (plain, other) = (
        trained(materials["dino"], f"arm={arm}") for arm in ("chosen_crops", "plain")
    )
    assert chosen != plain and its.stream_digest == other.stream_digest


def test_doctor_tries_estimators_on_an_arm_whose_task_has_controls():
    """The task that crops are trained with is the plain one, which has nothing to value."""
    result = doctor(tiny_recipe("arm=chosen_crops"))["estimators"]
    assert all(row["cosine"] > 0.999 for row in result)
