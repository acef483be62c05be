"""The DPO gradient against its definition, and against finite differences."""

import copy
import dataclasses

import pytest
import torch

from tests.language.conftest import tiny_learner
from vpretrain.language.data.rows import Document
from vpretrain.language.feedback.likelihood import parted
from vpretrain.language.feedback.preferences import Preferences
from vpretrain.method.feedback import EMAFeedback, MultiTaskFeedback, RandomDirection, Reversed


def tiny_pairs(count=20, seed=3):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda size: torch.randint(3, 40, (size,), generator=generator).tolist()  # noqa: E731
    pairs = []
    for at in range(count):
        prompt = draw(3)
        answers = [prompt + draw(2 + (at + side) % 4) for side in (0, 1)]
        made = [
            Document(ids, [False] * 3 + [True] * (len(ids) - 3), f"p:{at}", "p") for ids in answers
        ]
        pairs.append(tuple(made))
    return pairs


def feedback_on(pairs, batches=1, beta=0.3):
    chosen = [chosen for chosen, _ in pairs]
    samplers = parted(chosen, batches, batch_size=len(chosen) // batches, seed=0, pad_id=0)
    return Preferences(samplers, pairs, beta=beta)


def log_p(model, document):
    """One document alone, token by token."""
    ids = torch.tensor([document.ids])
    scores = torch.log_softmax(
        model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None]).logits[0], dim=1
    )
    return sum(
        scores[at - 1, token] for at, token in enumerate(document.ids) if document.predicted[at]
    )


def slow_loss(model, reference, pairs, beta):
    total = 0
    for chosen, rejected in pairs:
        now = log_p(model, chosen) - log_p(model, rejected)
        with torch.no_grad():
            before = log_p(reference, chosen) - log_p(reference, rejected)
        total = total - torch.log(1 / (1 + torch.exp(-beta * (now - before))))
    return total / len(pairs)


def moved(learner, size=0.05):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter += size * torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_gradient_is_that_of_the_slow_definition(family):
    learner = tiny_learner(family, dtype=torch.float64)
    pairs = tiny_pairs()  # more than a chunk
    feedback = feedback_on(pairs)
    (first,) = feedback.gradients(learner)
    reference = copy.deepcopy(learner.model)
    for step in range(2):
        result = first if step == 0 else feedback.gradients(learner)[0]
        expected = torch.autograd.grad(
            slow_loss(learner.model, reference, pairs, 0.3), list(learner.aligned.values())
        )
        for got, want in zip(result.values(), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)
        moved(learner)  # the second time the reference is another model than the learner


def test_gradient_agrees_with_finite_differences():
    learner = tiny_learner(dtype=torch.float64)
    pairs = tiny_pairs(6)
    feedback = feedback_on(pairs)
    feedback.gradients(learner)
    reference = copy.deepcopy(learner.model)
    moved(learner)
    (gradient,) = feedback.gradients(learner)
    generator = torch.Generator().manual_seed(1)
    direction = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in learner.aligned.items()
    }
    slope = sum(float((gradient[n] * u).sum()) for n, u in direction.items())
    heights = []
    with torch.no_grad():
        for sign in (1e-5, -2e-5):  # to one side, then from there to the other
            for name, u in direction.items():
                learner.aligned[name] += sign * u
            heights.append(float(slow_loss(learner.model, reference, pairs, 0.3)))
    assert (heights[0] - heights[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


def test_a_step_against_the_gradient_prefers_the_chosen():
    learner = tiny_learner()
    feedback = feedback_on(tiny_pairs())
    for _ in range(4):
        (gradient,) = feedback.gradients(learner)
        with torch.no_grad():
            for name, parameter in learner.aligned.items():
                parameter -= 0.5 * gradient[name]
    feedback.gradients(learner)
    told = feedback.metrics()
    assert told["margin"] > 0.1 and told["preferred"] > 0.9


def test_batches_share_no_pairs_and_learner_and_random_numbers_are_left_alone():
    learner = tiny_learner()
    learner.model.train()
    before, state = torch.get_rng_state(), copy.deepcopy(learner.model.state_dict())
    result = feedback_on(tiny_pairs(), batches=2).gradients(learner)
    assert len(result) == 2
    assert torch.equal(torch.get_rng_state(), before) and learner.model.training
    assert all(p.grad is None and p.requires_grad for p in learner.model.parameters())
    assert all(
        torch.equal(value, state[name]) for name, value in learner.model.state_dict().items()
    )


def test_a_resumed_run_keeps_the_reference_of_the_untouched_checkpoint():
    learner, pairs = tiny_learner(dtype=torch.float64), tiny_pairs(8)
    straight = feedback_on(pairs, batches=2)
    straight.gradients(learner)
    moved(learner)
    resumed = feedback_on(pairs, batches=2)
    resumed.load_state_dict(straight.state_dict())
    for one, other in zip(straight.gradients(learner), resumed.gradients(learner), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    fresh = feedback_on(pairs, batches=2).gradients(learner)[0]
    assert any(not torch.equal(fresh[name], one[name]) for name in fresh)


def test_the_reference_is_the_untouched_checkpoint_however_late_the_designer_begins():
    """The first gradient comes at the designer's start, when the learner has moved."""
    learner = tiny_learner(dtype=torch.float64)
    pairs, expected = tiny_pairs(8), feedback_on(tiny_pairs(8))
    expected.prepare(learner)
    feedback = feedback_on(pairs)
    together = MultiTaskFeedback({"liked": feedback}, {"liked": 1.0})
    wrapped = EMAFeedback(RandomDirection(Reversed(together), 0, fixed=False), 0.5)
    wrapped.prepare(learner)
    moved(learner)
    wrapped.gradients(learner)
    assert feedback.reference == expected.reference
    assert feedback.metrics()["margin"] != 0


def test_swapped_labels_turn_the_first_gradient_around():
    learner, pairs = tiny_learner(dtype=torch.float64), tiny_pairs(6)
    (right,) = feedback_on(pairs).gradients(learner)
    (wrong,) = feedback_on([(b, a) for a, b in pairs]).gradients(learner)
    for name in right:
        torch.testing.assert_close(right[name], -wrong[name], rtol=1e-8, atol=1e-11)


def test_origins_tell_pairs_apart():
    pairs = tiny_pairs(4)
    double = [pairs[0], tuple(dataclasses.replace(d, origin=pairs[0][0].origin) for d in pairs[1])]
    with pytest.raises(ValueError, match="origin"):
        feedback_on(double)
