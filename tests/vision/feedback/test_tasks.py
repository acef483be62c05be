"""Tasks: what counts in a loss, by hand, and what is wrong with targets."""

import math

import pytest
import torch

from vpretrain.vision.data.images import IGNORE, Picture
from vpretrain.vision.feedback.tasks import (
    Classification,
    Depth,
    Segmentation,
    balanced,
    mean_loss,
    target_problems,
)

PIXELS = torch.zeros(3, 2, 2, dtype=torch.uint8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cross_entropy_ignores_void_pixels():
    logits = torch.tensor([2.0, 0.0, -1.0])[None, :, None, None].expand(1, 3, 2, 2).clone()
    labels = torch.tensor([[[0, 1], [IGNORE, 0]]])
    norm = math.log(math.exp(2) + 1 + math.exp(-1))
    expected = (2 * (norm - 2) + norm) / 3
    assert mean_loss(Segmentation(3), logits, labels).item() == pytest.approx(expected, rel=1e-6)
    logits[0, :, 1, 0] = torch.tensor([-50.0, 9.0, 80.0])  # under the void
    assert mean_loss(Segmentation(3), logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_class_weights_are_those_of_a_weighted_mean():
    logits = torch.randn(2, 3, 4, 4, generator=seeded())
    labels = torch.randint(0, 3, (2, 4, 4), generator=seeded(1))
    labels[0, 0] = IGNORE
    weights = (0.5, 2.0, 7.0)
    total = count = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(4):
                if (label := int(labels[b, y, x])) != IGNORE:
                    total += weights[label] * -float(logits[b, :, y, x].log_softmax(dim=0)[label])
                    count += weights[label]
    assert mean_loss(Segmentation(3, weights), logits, labels).item() == pytest.approx(
        total / count, rel=1e-5
    )


def test_balanced_weights_give_every_class_the_same_say():
    labels = torch.tensor([[0, 0], [0, 2]]), torch.tensor([[IGNORE, 0], [0, 2]])
    weights = balanced(
        [Picture(str(at), PIXELS, labels=map_) for at, map_ in enumerate(labels)], classes=4
    )
    assert weights == pytest.approx((7 / (2 * 5), 1, 7 / (2 * 2), 1))
    assert 5 * weights[0] == pytest.approx(2 * weights[2])


@pytest.mark.parametrize(("loss", "expected"), [("l1", (1 + 2) / 2), ("l2", (1 + 4) / 2)])
def test_depth_losses_by_hand(loss, expected):
    depth = torch.tensor([[[3.0, 5.0, 0.0], [float("nan"), -1.0, 40.0]]])
    predicted = torch.tensor([[[4.0, 3.0, 7.0], [7.0, 7.0, 7.0]]], requires_grad=True)
    result = mean_loss(Depth(loss), predicted, depth)
    assert result.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(result, predicted)
    assert gradient.isfinite().all() and gradient.flatten()[2:].eq(0).all()
    scale = (0.5, -0.5) if loss == "l1" else (1.0, -2.0)
    assert gradient.flatten()[:2].tolist() == pytest.approx(scale)


def test_losses_add_up_over_pieces():
    logits = torch.randn(5, 3, 4, 4, generator=seeded())
    labels = torch.randint(0, 3, (5, 4, 4), generator=seeded(1))
    labels[3, 1:] = IGNORE
    task = Segmentation(3, (1.0, 2.0, 3.0))
    whole = mean_loss(task, logits, labels)
    pieces = [task.losses(logits[at : at + 2], labels[at : at + 2]).sum() for at in (0, 2, 4)]
    torch.testing.assert_close(sum(pieces) / task.counts(labels).sum(), whole)


def test_problems_name_the_picture_and_what_it_holds():
    wrong = Picture("street/7.png", PIXELS, labels=torch.tensor([[0, 12], [IGNORE, -3]]))
    (problem,) = target_problems([Segmentation(12)], [wrong], "data.feedback.train")
    assert (
        "street/7.png" in str(problem) and "[-3, 12]" in str(problem) and "0 to 11" in str(problem)
    )
    (problem,) = target_problems([Classification(3)], [Picture("b", PIXELS, category=3)], "data")
    assert "0 to 2" in problem.accepted


@pytest.mark.parametrize(
    ("task", "picture"),
    [
        (Segmentation(3), Picture("void", PIXELS, labels=torch.full((2, 2), IGNORE))),
        (Segmentation(3), Picture("bare", PIXELS)),
        (Depth(), Picture("far", PIXELS, depth=torch.tensor([[0.0, float("nan")], [-1.0, 11.0]]))),
        (Classification(3), Picture("bare", PIXELS)),
    ],
)
def test_a_task_without_a_target_is_refused(task, picture):
    (problem,) = target_problems([task], [picture], "data.feedback.meta")
    assert problem.where == "data.feedback.meta" and task.name in problem.message


def test_pictures_of_a_task_are_of_one_size():
    other = Picture("b", torch.zeros(3, 4, 2, dtype=torch.uint8), category=0)
    (problem,) = target_problems(
        [Classification(1)], [Picture("a", PIXELS, category=0), other], "data"
    )
    assert "4 x 2 (b)" in problem.value
