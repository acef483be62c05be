"""DINO's loss, its targets and its head, against their definitions."""

import pytest
import torch

from tests.vision.dino.small_learner import crop, learner
from vpretrain.vision.dino.learner import DinoSettings
from vpretrain.vision.dino.loss import DinoHead, balanced_targets, dino_loss, teacher_targets
from vpretrain.vision.steering.views import BaselineViews, LearnedTargets


def test_loss_is_its_slow_definition() -> None:
    torch.manual_seed(0)
    student, targets = (
        torch.randn(4, 3, 5, dtype=torch.float64),
        torch.rand(2, 3, 5, dtype=torch.float64),
    )
    slow = 0.0
    for g in range(2):
        for v in range(4):
            if v != g:
                for b in range(3):
                    for p in range(5):
                        slow -= float(
                            targets[g, b, p] * torch.log_softmax(student[v, b] / 0.1, 0)[p]
                        ) / (2 * 3 * 3)
    assert float(dino_loss(student, targets)) == pytest.approx(slow, rel=1e-12)
    # one global view and one other: a single pair
    alone = -(targets[0] * torch.log_softmax(student[1] / 0.2, -1)).sum(-1).mean()
    assert float(dino_loss(student[:2], targets[:1], temperature=0.2)) == pytest.approx(
        float(alone), rel=1e-12
    )


def test_a_view_is_not_compared_with_itself() -> None:
    torch.manual_seed(0)
    student = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(2, 2, 5, dtype=torch.float64)
    targets[0] = 0.2  # only the first view sets a target
    dino_loss(student, targets).backward()
    assert (
        student.grad is not None
        and not student.grad[0].any()
        and student.grad[1].any()
        and student.grad[2].any()
    )


def test_teacher_targets_are_sharpened_and_centred() -> None:
    logits = torch.tensor([[[1.0, 1.04]]])
    assert torch.allclose(
        teacher_targets(logits, torch.zeros(2)), torch.softmax(torch.tensor([[[0.0, 1.0]]]), -1)
    )
    assert torch.allclose(
        teacher_targets(logits, torch.tensor([1.0, 1.04])), torch.full((1, 1, 2), 0.5)
    )


def test_balanced_targets_are_the_slow_loop_and_no_prototype_wins() -> None:
    logits = (
        torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.05
    )
    logits[..., 1] += 0.3  # a prototype that would win in every image
    slow = (logits / 0.04).exp().flatten(0, 1)
    for _ in range(3):
        slow = slow / slow.sum(dim=0)
        slow = slow / slow.sum(dim=1, keepdim=True)
    result = balanced_targets(logits.requires_grad_(), temperature=0.04)
    assert torch.allclose(result, slow.view(2, 5, 3)) and not result.requires_grad
    assert torch.allclose(result.sum(dim=-1), torch.ones(2, 5, dtype=torch.float64))
    assert (
        float(result.mean(dim=(0, 1)).max())
        < 0.4
        < float(teacher_targets(logits, torch.zeros(3)).mean(dim=(0, 1)).max())
    )
    assert torch.isfinite(balanced_targets(logits.detach() * 1e4)).all()


def test_centering_is_as_set() -> None:
    """Balanced targets do not depend on the running centre, and the loss is taken on them."""
    result = {}
    for centering in ("mean", "sinkhorn"):
        made = learner(settings=DinoSettings(centering=centering))  # type: ignore[arg-type]
        before = made.forward(0).teacher_targets
        with torch.no_grad():
            loss = float(made.loss(made.forward(0), BaselineViews()))
            by_hand = float(made.loss(made.forward(0), LearnedTargets(before)))
        assert loss == pytest.approx(by_hand, rel=1e-10)
        made.center += torch.randn(
            made.center.shape, generator=torch.Generator().manual_seed(0)
        ).to(made.center)
        result[centering] = torch.allclose(made.forward(0).teacher_targets, before)
    assert result == {"mean": False, "sinkhorn": True}


@torch.no_grad()
def test_head_scores_are_cosines() -> None:
    head = DinoHead(6, hidden=(5, 4), bottleneck=3, prototypes=7)
    features = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    scores = head(features)
    assert scores.shape == (9, 7) and float(scores.abs().max()) <= 1 + 1e-6
    head.prototypes.mul_(100)  # length says nothing
    assert torch.allclose(head(features), scores, atol=1e-6)
    head.prototypes[2] = head.mlp(features[4:5])[0]
    assert float(head(features)[4, 2]) == pytest.approx(1, abs=1e-6)


def test_learner_loss_is_dino_on_the_models_own_outputs() -> None:
    """From the ``transformers`` model and the head alone, view by view, without any batching of
    views.
    """
    made = learner()
    views = crop(0)
    with torch.no_grad():
        student = [
            made.model.head(made.model.backbone(v).last_hidden_state[:, 0])
            for v in views.global_views + views.local_views
        ]
        teacher = made.teacher.model
        scores = [
            teacher.head(teacher.backbone(v).last_hidden_state[:, 0]) for v in views.global_views
        ]
        targets = torch.softmax((torch.stack(scores) - made.center) / 0.04, dim=-1)
        expected = dino_loss(torch.stack(student), targets)
        assert float(made.loss(made.forward(0), BaselineViews())) == pytest.approx(
            float(expected), rel=1e-10
        )
