"""Learned views and targets as tasks, the blur, and the regularisers of the mask."""

import pytest
import torch

from vpretrain.vision.steering.views import (
    BaselineViews,
    LearnedTargets,
    LearnedViews,
    blur,
    sparsity,
    total_variation,
)


def next_batches(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_a_mask_of_ones_gives_the_plain_views_bit_for_bit_and_zeros_the_blurred_ones() -> None:
    plain = 3 * next_batches(2, 4, 3, 16, 16)
    soft = blur(plain, 2.0)
    ones = torch.ones(2, 4, 1, 16, 16)
    assert torch.equal(LearnedViews(ones, soft).views(plain), plain)
    assert torch.equal(LearnedViews(0 * ones, soft).views(plain), soft)


def test_a_learned_view_mixes_pixel_by_pixel_and_mask_by_mask() -> None:
    plain, soft = next_batches(2, 3, 3, 4, 5), next_batches(2, 3, 3, 4, 5, seed=1)
    mask = torch.rand(2, 3, 1, 4, 5, generator=torch.Generator().manual_seed(2))
    views = LearnedViews(mask, soft).views(plain)
    for view, image, channel, row, column in [(0, 0, 0, 0, 0), (1, 2, 1, 3, 4), (0, 2, 2, 1, 3)]:
        keep = float(mask[view, image, 0, row, column])
        where = (view, image, channel, row, column)
        assert float(views[where]) == pytest.approx(
            keep * float(plain[where]) + (1 - keep) * float(soft[where]), abs=1e-5
        )


def test_the_blur_keeps_flat_images_and_the_mean_and_spreads_a_point_as_a_gaussian() -> None:
    assert torch.allclose(
        blur(torch.full((1, 2, 3, 9, 9), 0.7), 2.0), torch.full((1, 2, 3, 9, 9), 0.7)
    )
    point = torch.zeros(1, 3, 15, 15)
    point[0, 1, 7, 7] = 1
    spread = blur(point, 1.5)
    assert (
        float(spread[0, 1].sum()) == pytest.approx(1, abs=1e-5) and not spread[0, [0, 2]].any()
    )  # channels stay apart
    # a Gaussian falls by exp(-(d^2) / (2 sigma^2))
    assert float(spread[0, 1, 7, 9] / spread[0, 1, 7, 7]) == pytest.approx(
        2.718281828 ** (-4 / 4.5), rel=1e-4
    )
    assert torch.allclose(spread[0, 1], spread[0, 1].T)


def test_a_blur_wider_than_the_image_is_still_defined() -> None:
    wide = blur(next_batches(2, 3, 8, 8), 50.0)
    assert wide.shape == (2, 3, 8, 8) and float(wide.std(dim=(2, 3)).max()) < 0.2


def test_controls_are_what_a_designer_chose_and_come_back() -> None:
    mask, mass = torch.rand(2, 3, 1, 4, 4), torch.rand(2, 3, 5)
    views, targets = LearnedViews(mask, next_batches(2, 3, 3, 4, 4)), LearnedTargets(mass)
    assert (
        views.controls()[0] is mask
        and targets.controls()[0] is mass
        and BaselineViews().controls() == ()
    )
    other = views.with_controls((mask / 2,))
    assert other.controls()[0].equal(mask / 2) and other.blurred is views.blurred
    assert targets.with_controls((mass / 2,)).controls()[0].equal(mass / 2)


def test_each_task_changes_its_own_side_alone() -> None:
    plain, teacher = next_batches(2, 3, 3, 4, 4), torch.full((2, 3, 5), 0.2)
    assert BaselineViews().views(plain) is plain and BaselineViews().targets(teacher) is teacher
    assert LearnedViews(torch.rand(2, 3, 1, 4, 4), plain).targets(teacher) is teacher
    assert LearnedTargets(teacher / 2).views(plain) is plain


def test_a_weighted_row_of_targets_sums_to_its_weight() -> None:
    teacher = torch.softmax(next_batches(2, 3, 5), dim=-1)
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.5, 1.0]])
    mass = LearnedTargets.weighted(teacher, weights).mass
    assert torch.allclose(mass.sum(dim=-1), weights) and not mass[0, 1].any()
    assert torch.equal(LearnedTargets.weighted(teacher, torch.ones(2, 3)).mass, teacher)


def test_sparsity_pulls_the_mean_to_the_keep_ratio() -> None:
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    assert float(sparsity(mask, 0.75)) == 0 and float(sparsity(mask, 0.25)) == pytest.approx(0.25)
    (gradient,) = torch.autograd.grad(sparsity(mask.requires_grad_(), 0.25), mask)
    assert torch.allclose(gradient, torch.full_like(mask, 2 * 0.5 / 4))


def test_total_variation_counts_the_jumps_between_neighbours() -> None:
    edge = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])[None, None]
    assert float(total_variation(edge)) == pytest.approx(
        2 / 4
    )  # two of four horizontal neighbours differ, none vertical
    assert float(total_variation(edge.mT)) == pytest.approx(2 / 4)
    assert float(total_variation(torch.full((2, 1, 3, 3), 0.3))) == 0
    checks = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert float(total_variation(checks)) == 2
