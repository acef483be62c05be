"""Block masks: what a user would notice if they were wrong."""

import math

import pytest
import torch

from vpretrain.system.errors import UserError
from vpretrain.vision.ijepa.blocks import BlockSettings, check_grid, sample_blocks

PAPER = BlockSettings()
GRIDS = [(14, 14), (16, 16), (8, 12), (4, 4)]


def extent(block, columns):
    """Height and width of a block of patch numbers, which must be a full rectangle."""
    rows, places = block // columns, block % columns
    height, width = int(rows.max() - rows.min()) + 1, int(places.max() - places.min()) + 1
    assert len(set(block.tolist())) == height * width == len(block)
    return height, width


@pytest.mark.parametrize("grid", GRIDS)
def test_shapes_ranges_and_that_no_target_is_in_its_context(grid):
    for seed in range(20):
        masks = sample_blocks(5, grid, PAPER, seed=seed)
        assert masks.context.dtype == masks.targets.dtype == torch.int64
        assert masks.targets.shape[:2] == (5, 4)
        assert masks.context.shape[0] == 5 and masks.context.shape[1] >= PAPER.least_context_patches
        for ids in (masks.context, masks.targets):
            assert ids.min() >= 0 and ids.max() < grid[0] * grid[1]
            assert (ids.diff(dim=-1) > 0).all()  # distinct and ascending
        for context, targets in zip(masks.context, masks.targets, strict=True):
            assert not set(context.tolist()) & set(targets.flatten().tolist())


@pytest.mark.parametrize("grid", [(14, 14), (32, 32), (20, 30)])
def test_target_blocks_are_rectangles_of_the_asked_scale_and_aspect(grid):
    """Up to the rounding of both sides to whole patches."""
    seen = set()
    for seed in range(20):
        masks = sample_blocks(2, grid, PAPER, seed=seed)
        sides = {extent(block, grid[1]) for image in masks.targets for block in image}
        assert len(sides) == 1  # one size a batch
        height, width = sides.pop()
        seen.add((height, width))
        patches = math.prod(grid)
        assert (height - 0.5) * (width - 0.5) <= 0.2 * patches and (height + 0.5) * (
            width + 0.5
        ) >= 0.15 * patches
        assert (height - 0.5) / (width + 0.5) <= 1.5 and (height + 0.5) / (width - 0.5) >= 0.75
    assert len(seen) > 3


def test_the_context_is_the_block_without_the_targets():
    """One image and a block of the whole grid: context and targets share it out."""
    settings = BlockSettings(context_scale=(1.0, 1.0))
    for seed in range(10):
        masks = sample_blocks(1, (14, 14), settings, seed=seed)
        assert sorted({*masks.context[0].tolist(), *masks.targets[0].flatten().tolist()}) == list(
            range(196)
        )


def test_a_smaller_context_block_stays_within_a_rectangle():
    settings = BlockSettings(context_scale=(0.3, 0.3), targets=1)
    masks = sample_blocks(8, (20, 20), settings, seed=3)
    side = round(math.sqrt(0.3 * 400))
    for context in masks.context:
        assert int((context // 20).max() - (context // 20).min()) < side
        assert int((context % 20).max() - (context % 20).min()) < side


def test_every_image_of_a_batch_gets_blocks_of_its_own_anywhere_on_the_grid():
    masks = sample_blocks(400, (6, 6), PAPER, seed=0)
    assert len({tuple(image.flatten().tolist()) for image in masks.targets}) > 300
    assert set(masks.targets.flatten().tolist()) == set(range(36))
    assert set(masks.context.flatten().tolist()) == set(range(36))


def test_context_patches_beyond_the_common_number_are_dropped_at_random():
    """Cutting the last ones would always hide the lower rows; by symmetry the mean row is the
    middle one.
    """
    rows = torch.cat(
        [sample_blocks(64, (8, 8), PAPER, seed=seed).context.flatten() // 8 for seed in range(20)]
    )
    assert float(rows.double().mean()) == pytest.approx(3.5, abs=0.1)


def test_a_seed_replays_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (sample_blocks(3, (14, 14), PAPER, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.context, again.context) and torch.equal(first.targets, again.targets)
    assert first.targets.shape != other.targets.shape or not torch.equal(
        first.targets, other.targets
    )


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 7)])
def test_a_grid_that_is_too_small_is_refused_with_the_number_that_would_do(grid):
    with pytest.raises(UserError, match=r"learner\.blocks.*\n.*patches\n.*at least \d+ patches"):
        check_grid(grid, PAPER)
    with pytest.raises(UserError, match="larger images"):
        sample_blocks(2, grid, PAPER, seed=0)


def test_targets_that_leave_no_context_are_refused_and_do_not_hang():
    settings = BlockSettings(targets=1, target_scale=(0.15, 0.95), least_context_patches=50)
    with pytest.raises(UserError, match="too little context"):
        for seed in range(50):
            sample_blocks(2, (8, 8), settings, seed=seed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_scale", (0.2, 0.15)),
        ("target_scale", (0.0, 0.2)),
        ("target_aspect", (0.0, 1.0)),
        ("context_scale", (0.85, 1.1)),
        ("targets", 0),
        ("least_context_patches", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_key(name, value):
    with pytest.raises(ValueError, match=name):
        BlockSettings(**{name: value})
