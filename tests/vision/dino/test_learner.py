"""DINO's learner: learned views, the teacher, and what a run keeps of it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.vision.dino.small_learner import Views, crop, learner, masked, narrow_crop
from vpretrain.method import vectors
from vpretrain.method.roles import detached
from vpretrain.system.errors import UserError
from vpretrain.vision.dino.learner import DinoSettings, teacher_momentum
from vpretrain.vision.dino.loss import dino_loss
from vpretrain.vision.learners import warm_up
from vpretrain.vision.steering.views import BaselineViews, LearnedViews, blur

# Learned views: nothing learned is nothing changed.


@pytest.mark.parametrize("teacher_views", ["plain", "learned"])
def test_a_mask_of_ones_is_the_plain_run_bit_for_bit(teacher_views: Any) -> None:
    results = []
    for learned in (False, True):
        made = learner(
            settings=DinoSettings(teacher_views=teacher_views),
            dtype=torch.float32,
            crops=narrow_crop,
        )
        context = made.forward(0)
        ones = torch.ones(2, 3, 1, 32, 32)
        loss = made.loss(
            context,
            LearnedViews(ones, blur(context.global_views, 2.0)) if learned else BaselineViews(),
        )
        loss.backward()
        made.after_step(0.5)
        gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
        assert len(gradients) > len(made.aligned)
        results.append([loss.detach(), *gradients, made.center, *made.teacher.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_the_teacher_sees_is_as_set() -> None:
    """A fully blurred pair of global views: its targets are the plain ones', or those of the
    blurred ones.
    """
    for setting, changed in (("plain", False), ("learned", True)):
        made = learner(settings=DinoSettings(teacher_views=setting))  # type: ignore[arg-type]
        context = made.forward(0)
        task = LearnedViews(
            torch.zeros(2, 3, 1, 32, 32, dtype=torch.float64), blur(context.global_views, 2.0)
        )
        seen = task.views(context.global_views) if changed else context.global_views
        targets = made.targets(made.teacher.logits(seen))
        with torch.no_grad():
            heads = [
                made.model.head(made.backbone.features(v).pooled)
                for v in [*task.views(context.global_views), *crop(0).local_views]
            ]
        assert float(made.loss(context, task).detach()) == pytest.approx(
            float(dino_loss(torch.stack(heads), targets)), rel=1e-10
        )


# The teacher.


def test_the_teacher_never_gets_gradients_and_the_detached_task_gives_none_to_the_mask() -> None:
    made = learner(settings=DinoSettings())
    context = made.forward(0)
    mask = masked(context).mask.requires_grad_()
    made.loss(context, detached(LearnedViews(mask, blur(context.global_views, 2.0)))).backward()
    assert mask.grad is None and not context.teacher_targets.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in made.teacher.model.parameters())
    assert not {id(p) for p in made.model.parameters()} & {
        id(p) for p in made.teacher.model.parameters()
    }
    trained = {n for n, p in made.model.named_parameters() if p.grad is not None}
    assert {"head.prototypes", "backbone.embeddings.cls_token"} <= trained
    assert torch.equal(
        made.forward(1).teacher_logits, made.teacher.logits(torch.stack(crop(1).global_views))
    )


def test_teacher_and_centre_move_by_their_momenta_once_a_step() -> None:
    made = learner(settings=DinoSettings(teacher_momentum=0.9, center_momentum=0.75))
    teacher = [p.clone() for p in made.teacher.model.parameters()]
    center, context = made.center.clone(), made.forward(0)
    made.loss(context, BaselineViews())
    assert torch.equal(made.center, center)
    made.after_step(0.0)
    for before, after, student in zip(
        teacher, made.teacher.model.parameters(), made.model.parameters(), strict=True
    ):
        assert torch.allclose(after, 0.9 * before + 0.1 * student)
    moved = 0.75 * center + 0.25 * context.teacher_logits.mean(dim=(0, 1))
    assert torch.allclose(made.center, moved)
    at_rest = made.teacher.model.head.prototypes.clone()
    made.after_step(1.0)  # momentum 1, and no batch was seen since
    assert torch.allclose(made.center, moved)
    assert torch.equal(made.teacher.model.head.prototypes, at_rest)


def test_the_momentum_rises_to_one() -> None:
    fractions = [teacher_momentum(0.996, fraction) for fraction in (0.0, 0.5, 1.0)]
    assert fractions == pytest.approx([0.996, 0.998, 1.0], abs=1e-12)


def test_a_teacher_that_equals_its_student_stays_bit_for_bit() -> None:
    """Burn-in steps have learning rate 0: nothing may drift there by rounding."""
    made = learner(dtype=torch.bfloat16)
    made.teacher.load({n: vectors.wide(p.detach()) for n, p in made.model.named_parameters()})
    for _ in range(3):
        made.after_step(0.0)
    pairs = zip(made.model.parameters(), made.teacher.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_bfloat16_teacher_does_not_stand_still() -> None:
    made = learner(dtype=torch.bfloat16)
    before = made.teacher.average["backbone.norm.weight"].clone()
    for _ in range(100):
        made.after_step(0.0)
    student = made.model.backbone.norm.weight.float()
    expected = student + 0.996**100 * (before - student)
    assert torch.allclose(made.teacher.average["backbone.norm.weight"], expected, atol=1e-5)
    assert torch.equal(
        made.teacher.model.backbone.norm.weight,
        made.teacher.average["backbone.norm.weight"].bfloat16(),
    )


def test_state_comes_back() -> None:
    first, second = learner(), learner()
    for parameter in first.model.parameters():
        parameter.data.add_(0.1)
    first.loss(first.forward(0), BaselineViews())
    first.after_step(0.0)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(
            *(made.loss(made.forward(1), BaselineViews()) for made in (first, second))
        )
    first.after_step(0.0)
    assert not torch.equal(first.center, second.center)  # the states are not the same tensors


def test_head_warm_up_trains_the_head_alone_and_lowers_the_loss() -> None:
    made = learner(settings=DinoSettings())
    made.model.train()
    before = {n: p.clone() for n, p in made.model.named_parameters()}
    teacher = {n: p.clone() for n, p in made.teacher.model.named_parameters()}

    def batches() -> Iterator[int]:
        while True:
            yield 0

    losses = warm_up(made, batches(), steps=8, learning_rate=0.02)
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])} == {
        n for n in before if n.startswith("head.")
    }
    assert not torch.equal(made.teacher.model.head.prototypes, teacher["head.prototypes"])
    assert (
        all(p.grad is None and p.requires_grad for p in made.model.parameters())
        and made.model.backbone.training
    )


@pytest.mark.parametrize("count", [1, 0])
def test_a_batch_without_two_views_is_refused(count: int) -> None:
    views = Views(crop(0).global_views[:count], [] if count else crop(0).local_views)
    with pytest.raises(UserError, match="no pair of views"):
        learner(crops=lambda seed: views).forward(0)
