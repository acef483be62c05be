"""Pictures at another size keep their maps in place; numbers are normalised, digests of content."""

from __future__ import annotations

import pytest
import torch

from vpretrain.vision.data.images import (
    IGNORE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Picture,
    cropped,
    normalised,
    pictures_hash,
    resized,
    valid_depth,
)


def picture(height: int = 4, width: int = 6, name: str = "p") -> Picture:
    """Every pixel's value, label and depth say the same number, below 200."""
    number = torch.arange(height * width).view(height, width)
    return Picture(name, number.to(torch.uint8).expand(3, -1, -1), number, number.float())


def test_a_resized_picture_keeps_maps_and_pixels_in_place() -> None:
    twice = resized(picture(), (8, 12))
    assert torch.equal(
        twice.labels, picture().labels.repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    assert torch.equal(twice.depth, twice.labels.float())
    assert (
        twice.pixels[0].float() - twice.depth
    ).abs().max() <= 3  # between neighbours that differ by 1 or 6
    assert torch.equal(resized(twice, (4, 6)).labels, picture().labels)
    large, third = picture(15, 15), resized(picture(15, 15), (5, 5))
    assert torch.equal(
        third.labels, large.labels[1::3, 1::3]
    )  # the pixel in the middle of each nine
    inside = slice(1, -1)  # a plane stays a plane, away from the border
    assert torch.equal(third.pixels[0, inside, inside], large.pixels[0, 4:12:3, 4:12:3])


def test_sizes_after_resizing() -> None:
    assert resized(picture(), 2).size == (2, 3)
    assert resized(picture(6, 4), 2).size == (3, 2)
    assert resized(picture(), (5, 5)).size == (5, 5)
    same = picture()
    assert resized(same, (4, 6)) is same and resized(same, 4) is same


def test_no_label_comes_up_that_was_not_there() -> None:
    labels = torch.tensor([[0, IGNORE], [7, 0]])
    made = resized(Picture("p", torch.zeros(3, 2, 2, dtype=torch.uint8), labels), (5, 7))
    assert set(made.labels.unique().tolist()) == {0, 7, IGNORE}


def test_a_window_is_cut_from_all_maps() -> None:
    part = cropped(picture(), 1, 2, 2, 3)
    assert part.labels.tolist() == [[8, 9, 10], [14, 15, 16]]
    assert torch.equal(part.pixels[2].long(), part.labels) and torch.equal(
        part.depth, part.labels.float()
    )
    for window in ((-1, 0, 2, 2), (3, 0, 2, 2), (0, 5, 2, 2)):
        with pytest.raises(ValueError, match="p: no window"):
            cropped(picture(), *window)


def test_normalised_by_hand() -> None:
    made = normalised([picture(), picture()])
    assert made.shape == (2, 3, 4, 6) and made.dtype == torch.float32
    for channel in range(3):
        expected = (23 / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert float(made[1, channel, 3, 5]) == pytest.approx(expected, rel=1e-5)
    pixels = picture().pixels[None]
    assert torch.allclose(normalised(pixels), normalised(pixels.float() / 255))
    with pytest.raises(ValueError, match=r"small.*large"):
        normalised([picture(name="small"), picture(5, 5, name="large")])


def test_valid_depths() -> None:
    depth = torch.tensor([float("nan"), float("inf"), -1.0, 0.0, 1e-3, 0.5, 10.0, 10.1])
    assert valid_depth(depth).tolist() == [False, False, False, False, True, True, True, True]
    assert valid_depth(depth, 1e-3, 10).tolist() == [False] * 5 + [True, True, False]


def test_a_digest_is_of_the_content() -> None:
    base = picture()
    assert base.digest() == picture(name="other").digest()
    others = [
        picture(6, 4),
        Picture("p", base.pixels + 1, base.labels, base.depth),
        Picture("p", base.pixels, base.labels + 1, base.depth),
        Picture("p", base.pixels, base.labels, base.depth + 1),
        Picture("p", base.pixels, base.labels, base.depth, 3),
        Picture("p", base.pixels),
    ]
    assert len({base.digest(), *(other.digest() for other in others)}) == 7


def test_a_picture_refuses_maps_that_do_not_fit() -> None:
    pixels = torch.zeros(3, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="labels"):
        Picture("p", pixels, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="depth"):
        Picture("p", pixels, None, torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="uint8"):
        Picture("p", pixels.float())


def test_the_hash_of_pictures_is_of_pixels_and_labels():
    pixels, labels = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int64)
    result = {
        pictures_hash(pictures)
        for pictures in (
            [Picture("a", pixels, labels)],
            [Picture("a", pixels + 1, labels)],
            [Picture("a", pixels, labels + 1)],
            [Picture("a", pixels, labels)] * 2,
            [Picture("a", pixels, labels, category=1)],
        )
    }
    assert len(result) == 5 and pictures_hash([Picture("b", pixels, labels)]) in result
