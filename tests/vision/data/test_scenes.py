"""Scenes: what is labelled is what is seen, at the depth it is at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vpretrain.system.errors import UserError
from vpretrain.vision.data.raycast import Room, Surface, Thing, render
from vpretrain.vision.data.scenes import (
    CATEGORIES,
    CLASSES,
    FARTHEST_METRES,
    KINDS,
    NEAREST_METRES,
    SPLITS,
    Scenes,
    scene,
)

BALL, BOX, CONE = 0, 1, 2


def surface(texture: int = 0) -> Surface:
    waves = np.ones((3, 3 if texture == 1 else 1), np.float32)
    colours = np.array([[0.2, 0.3, 0.4], [0.9, 0.7, 0.5]], np.float32)
    return Surface(texture, colours, waves, np.zeros(waves.shape[1], np.float32), 6.28)


ROOM = Room(
    horizon=0.5,
    camera_metres=1.0,
    wall_metres=9.0,
    ground=surface(),
    wall=surface(),
    light=np.array([0, -0.6, -0.8], np.float32),
    exposure=np.ones(3, np.float32),
)


def thing(
    shape: int, *, x: float = 0.0, z: float = 3.0, height: float = 1.0, turn: float = 0.0
) -> Thing:
    return Thing(0, shape, x, z, height, 0.0, turn, surface())


def sample(count: int = 60) -> list:
    return list(Scenes("dev", count, 48, 0))


def test_a_scene_is_a_function_of_its_arguments() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = scene(3, 5, 32)
    np.random.seed(2)
    scene(3, 6, 32)
    assert scene(3, 5, 32).digest() == first.digest()
    others = {scene(3, 6, 32).digest(), scene(4, 5, 32).digest(), scene(5, 3, 32).digest()}
    assert len(others | {first.digest()}) == 4


def test_the_layout_does_not_depend_on_the_size() -> None:
    for index in range(5):
        small, large = scene(0, index, 32), scene(0, index, 96)
        middles = large.labels[1::3, 1::3]  # where the small picture's pixel centres fall
        assert torch.equal(middles, small.labels)
        assert torch.allclose(large.depth[1::3, 1::3], small.depth, atol=1e-3)


def test_splits_and_seeds_share_no_scene() -> None:
    seen: set[str] = set()
    for split in SPLITS:
        for seed in (0, 1):
            seen |= {picture.digest() for picture in Scenes(split, 20, 16, seed)}
    assert len(seen) == len(SPLITS) * 2 * 20


def test_a_longer_set_begins_with_the_shorter_one() -> None:
    short, long = Scenes("test", 3, 16, 7), Scenes("test", 9, 16, 7)
    assert [p.digest() for p in short] == [long[i].digest() for i in range(3)]
    assert [p.name for p in short] == ["scenes/test/7/0", "scenes/test/7/1", "scenes/test/7/2"]
    with pytest.raises(IndexError):
        short[3]


def test_the_unlabelled_have_the_same_pixels_and_nothing_else() -> None:
    plain, full = Scenes("stream", 2, 16, 0, labelled=False), Scenes("stream", 2, 16, 0)
    assert torch.equal(plain[1].pixels, full[1].pixels)
    assert (plain[1].labels, plain[1].depth, plain[1].category) == (None, None, None)


def test_ranges_and_the_share_of_the_foreground() -> None:
    pictures = sample()
    labels = torch.stack([p.labels for p in pictures])
    depth = torch.stack([p.depth for p in pictures])
    assert float((labels > 0).float().mean()) >= 0.5
    assert depth.min() >= NEAREST_METRES and depth.max() <= FARTHEST_METRES
    fractions = torch.bincount(labels.flatten(), minlength=len(CLASSES)) / labels.numel()
    assert len(fractions) == 7 and fractions[1:].min() > 0.04  # no class is rare
    for picture in pictures:
        assert picture.pixels.dtype == torch.uint8 and picture.pixels.shape == (3, 48, 48)
        assert picture.category is not None and (picture.labels == picture.category + 1).any()
    assert {p.category for p in pictures} == set(range(len(CATEGORIES)))


def test_it_takes_colours_and_texture_to_name_a_category() -> None:
    assert len(set(KINDS)) == len(CATEGORIES) == 6
    assert all(sum(kind[0] == value for kind in KINDS) == 2 for value in range(3))
    assert all(sum(kind[1] == value for kind in KINDS) == 3 for value in range(2))


def test_mean_colour_does_not_tell_the_categories_but_how_it_varies_does() -> None:
    """Means lie closer together than one object's strays; the axis of the colours' spread names the
    pair of colours.
    """
    means: dict[int, list[torch.Tensor]] = {label: [] for label in range(1, 7)}
    hits = []
    for picture in Scenes("dev", 150, 32, 1):
        for label in picture.labels.unique()[1:]:
            pixels = picture.pixels[:, picture.labels == label].float()
            if pixels.shape[1] < 60:
                continue
            means[int(label)].append(pixels.mean(1))
            away = pixels - pixels.mean(0, keepdim=True)
            axes = torch.eye(3) - 1 / 3
            spread = ((axes @ away) - (axes @ away).mean(1, keepdim=True)).square().mean(1)
            hits.append(int(spread.argmax()) == KINDS[int(label) - 1][0])
    middles = torch.stack([torch.stack(result).mean(0) for result in means.values()])
    strays = torch.stack([torch.stack(result).std(0) for result in means.values()])
    assert (middles.max(0).values - middles.min(0).values).max() < strays.min()
    assert sum(hits) / len(hits) > 0.9


@pytest.mark.parametrize("pair", [(BALL, BOX), (BOX, CONE), (CONE, BALL)])
def test_the_nearer_object_hides_the_farther_whatever_the_order(pair: tuple[int, int]) -> None:
    near, far = thing(pair[0], z=2.5), thing(pair[1], x=0.3, z=4.0, height=1.5)
    alone = [render(ROOM, [one], 64) for one in (near, far)]
    near_mask, far_mask = (owner == 1 for _, owner, _ in alone)
    assert (near_mask & far_mask).any()
    colour, owner, depth = render(ROOM, [near, far], 64)
    assert np.array_equal(owner == 1, near_mask)
    assert np.array_equal(owner == 2, far_mask & ~near_mask)
    nearest = np.minimum(alone[0][2], alone[1][2])
    assert np.array_equal(depth, nearest)
    swapped_colour, swapped, swapped_depth = render(ROOM, [far, near], 64)
    assert np.array_equal(np.array([0, 2, 1])[swapped], owner)
    assert np.array_equal(swapped_depth, depth)
    assert np.allclose(swapped_colour, colour, atol=1e-6)  # two shadows multiply in either order


def test_depths_by_hand() -> None:
    # the pixels' centres are at (i + 0.5) / 90, and 0.9 lengths of the side are one metre at a
    # metre
    size = 90
    colour, owner, depth = render(ROOM, [], size)
    assert colour.shape == (size, size, 3) and not owner.any()
    # Ground under the horizon: 0.9 * 1 m / (row - 0.5). At the last row that is 0.9 / (89.5 / 90 -
    # 0.5).
    assert depth[-1, 0] == pytest.approx(0.9 / (89.5 / 90 - 0.5), rel=1e-5)
    assert (
        depth[:46] == 9
    ).all()  # the wall, down to where the ground comes nearer than 9 m: 0.1 below the horizon
    assert (np.diff(depth[:, 3]) <= 0).all()
    # A ball of 1 m on the ground 3 m away: its middle is half a metre under the camera. The ray to
    # the middle meets it at |middle| - 0.5 along the ray, which is 3 * (1 - 0.5 / |middle|) in
    # depth.
    _, owner, depth = render(ROOM, [thing(BALL)], 900)
    row, distance = round(900 * (0.5 + 0.9 * 0.5 / 3)), np.hypot(3, 0.5)
    assert owner[row, 450] == 1
    assert depth[row, 450] == pytest.approx(3 * (1 - 0.5 / distance), abs=2e-3)
    # A box of 1 m whose half width is 0.42 m turns its front to the camera: 3 - 0.42 at every pixel
    # of the front.
    _, owner, depth = render(ROOM, [thing(BOX)], 900)
    assert depth[row, 450] == pytest.approx(2.58, abs=1e-4)
    width = (owner[row] == 1).sum() / 900
    assert width == pytest.approx(0.9 * 0.84 / 2.58, abs=2e-3)
    # A cone as wide as high narrows to its tip, 1 m up: nothing is seen above, and the tip is at
    # the depth of the middle.
    _, owner, depth = render(replace(ROOM, camera_metres=1.4), [thing(CONE)], 900)
    rows = np.flatnonzero((owner == 1).any(1))
    assert rows[0] / 900 == pytest.approx(0.5 + 0.9 * 0.4 / 3, abs=3e-3)
    assert depth[rows[0], 450] == pytest.approx(3, abs=0.02)


def test_size_falls_with_depth() -> None:
    for shape in (BALL, BOX, CONE):
        room = replace(ROOM, camera_metres=0.5)
        near, far = (
            int((render(room, [thing(shape, z=z)], 200)[1] == 1).sum()) for z in (3.0, 6.0)
        )
        assert near / far == pytest.approx(
            4, rel=0.25
        )  # twice as far, a quarter of the pixels (relief apart)


def test_depth_lies_within_the_object() -> None:
    for shape in (BALL, BOX, CONE):
        one = replace(thing(shape, x=-0.4, z=3.5, turn=0.7), lift=0.8)
        _, owner, depth = render(ROOM, [one], 64)
        inside = depth[owner == 1]
        assert len(inside) and (abs(inside - 3.5) <= 0.42 * 2**0.5 + 1e-4).all()


def test_no_object_is_cut_by_the_window_that_it_is_rendered_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vpretrain.vision.data import raycast as module

    pictures = [p.digest() for p in sample(40)]
    monkeypatch.setattr(
        module, "_window", lambda room, thing, across, down: (slice(0, 48), slice(0, 48))
    )
    assert [p.digest() for p in sample(40)] == pictures


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match="stream, feedback, dev, test"):
        Scenes("train", 4, 16, 0)
    with pytest.raises(UserError, match="count"):
        Scenes("dev", 0, 16, 0)
    with pytest.raises(ValueError):
        scene(-1, 0, 16)
    with pytest.raises(ValueError):
        scene(0, 0, 4)
