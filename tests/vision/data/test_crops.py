"""Views: sizes, what is distorted, and the same views again from the batch alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("kornia")

from vpretrain.vision.data.crops import Crops, CropSettings, MultiCrop
from vpretrain.vision.data.images import IMAGENET_MEAN, IMAGENET_STD
from vpretrain.vision.data.scenes import Scenes
from vpretrain.vision.data.stream import ImageBatch, Source, Stream

STILL = CropSettings(
    global_size=16,
    local_size=8,
    local_count=0,
    global_scale=(1.0, 1.0),
    flip=0.0,
    jitter=0.0,
    grayscale=0.0,
    blur=(0.0, 0.0, 0.0),
    solarise=0.0,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
"""Nothing happens but the crop, and that is of nearly the whole picture."""


def still(**changes: object) -> MultiCrop:
    return MultiCrop(STILL.model_copy(update=changes))


@pytest.fixture(scope="module")
def batch() -> ImageBatch:
    return next(Stream([Source("s", Scenes("stream", 8, 32, 0))], batch_size=8, size=32, seed=0))


def grey(values: list[float], seed: int = 0, side: int = 16) -> ImageBatch:
    """Pictures of one brightness each."""
    pixels = (
        (torch.tensor(values) * 255)
        .round()
        .to(torch.uint8)
        .view(-1, 1, 1, 1)
        .expand(-1, 3, side, side)
    )
    return ImageBatch(
        pixels.contiguous(), torch.arange(len(values)), tuple("p" * len(values)), seed
    )


def same(one: Crops, other: Crops) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def test_sizes_and_types(batch: ImageBatch) -> None:
    crops = MultiCrop(CropSettings(global_size=24, local_size=12, global_count=2, local_count=3))(
        batch
    )
    assert [v.shape for v in crops.global_views] == [(8, 3, 24, 24)] * 2
    assert [v.shape for v in crops.local_views] == [(8, 3, 12, 12)] * 3
    assert crops.views == crops.global_views + crops.local_views
    low = torch.tensor([-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]).view(
        3, 1, 1
    )
    high = torch.tensor(
        [(1 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    ).view(3, 1, 1)
    for view in crops.views:
        assert view.dtype == torch.float32 and not view.requires_grad
        assert (view >= low - 1e-5).all() and (view <= high + 1e-5).all()


def test_the_same_batch_gives_the_same_views_whatever_was_drawn_in_between(
    batch: ImageBatch,
) -> None:
    multi_crop = MultiCrop(CropSettings(global_size=24, local_size=12))
    torch.manual_seed(0)
    first = multi_crop(batch)
    multi_crop(replace(batch, seed=batch.seed + 1))
    torch.randn(17)
    assert same(multi_crop(batch), first)
    torch.manual_seed(99)
    assert same(MultiCrop(CropSettings(global_size=24, local_size=12))(batch), first)
    assert not same(multi_crop(replace(batch, seed=batch.seed + 1)), first)


def test_the_global_random_state_is_neither_read_nor_changed(batch: ImageBatch) -> None:
    before = torch.get_rng_state()
    MultiCrop(CropSettings(global_size=16, local_size=8))(batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_views_differ_from_each_other_and_do_not_depend_on_how_many_there_are(
    batch: ImageBatch,
) -> None:
    many = MultiCrop(
        CropSettings(global_size=16, local_size=16, local_count=4, blur=(0.5, 0.5, 0.5))
    )(batch)
    views = many.views
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])
    few = MultiCrop(
        CropSettings(global_size=16, local_size=16, local_count=1, blur=(0.5, 0.5, 0.5))
    )(batch)
    assert all(torch.equal(a, b) for a, b in zip(few.global_views, many.global_views, strict=True))
    assert torch.equal(few.local_views[0], many.local_views[0])


@pytest.mark.parametrize(
    "change", [{"jitter": 1.0}, {"flip": 0.5}, {"grayscale": 0.5}, {"blur": (1.0, 0.0, 0.0)}, {}]
)
def test_every_sample_is_distorted_by_draws_of_its_own(
    batch: ImageBatch, change: dict[str, object]
) -> None:
    """The same picture eight times: it comes out differently, by whatever is switched on (or the
    crop, if nothing is).
    """
    repeated = replace(batch, pixels=batch.pixels[:1].expand(8, -1, -1, -1).contiguous())
    multi_crop = still(**(change or {"global_scale": (0.3, 0.6)}))
    view = multi_crop(repeated).global_views[0]
    kinds = {tuple(sample.flatten()[:200].tolist()) for sample in view}
    assert len(kinds) >= (2 if {"flip", "grayscale"} & set(change) else 7)


def test_still_is_still() -> None:
    """With everything switched off a plain picture stays what it is: what else the views show was
    asked for.
    """
    view = still(global_scale=(0.5, 1.0))(grey([0.0, 0.2, 1.0])).global_views[1]
    expected = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    assert torch.allclose(view, expected, atol=1e-6)


def test_a_flip_mirrors() -> None:
    pixels = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    pixels[..., 8:] = 255
    halves = ImageBatch(pixels, torch.arange(64), tuple("p" * 64), 3)
    right = still(flip=0.5)(halves).global_views[0][:, 0, 8, 14] > 0.5
    assert (
        20 <= int(right.sum()) <= 44
    )  # about half stay as they were; 4 standard deviations are 16
    assert not (still(flip=1.0)(halves).global_views[0][:, 0, 8, 14] > 0.5).any()


def test_grey_takes_the_colours_out(batch: ImageBatch) -> None:
    view = still(grayscale=1.0)(batch).global_views[0]
    assert torch.allclose(view[:, 0], view[:, 1], atol=1e-6) and torch.allclose(
        view[:, 0], view[:, 2], atol=1e-6
    )
    coloured = still()(batch).global_views[0]
    assert (coloured[:, 0] - coloured[:, 1]).abs().mean() > 0.05


def test_solarisation_inverts_the_bright_in_global_views_after_the_first() -> None:
    crops = still(solarise=1.0, global_count=3, local_count=1)(grey([0.2, 0.8]))
    untouched, inverted = torch.tensor([0.2, 0.8]), torch.tensor([0.2, 0.2])
    means = [view.mean((1, 2, 3)) for view in crops.views]
    for mean, expected in zip(means, (untouched, inverted, inverted, untouched), strict=True):
        assert torch.allclose(mean, expected, atol=3e-3)


def test_blur_is_where_it_was_asked_for(batch: ImageBatch) -> None:
    def roughness(blur: tuple[float, float, float]) -> list[float]:
        made = still(
            blur=blur,
            blur_sigma=(2.0, 2.0),
            local_count=1,
            local_size=16,
            local_scale=(1.0, 1.0),
        )
        return [float(view.diff(dim=-1).abs().mean()) for view in made(batch).views]

    sharp = roughness((0.0, 0.0, 0.0))
    for place in range(3):
        blurred = roughness(tuple(float(i == place) for i in range(3)))  # type: ignore[arg-type]
        assert blurred[place] < 0.6 * sharp[place]
        assert [v for i, v in enumerate(blurred) if i != place] == [
            v for i, v in enumerate(sharp) if i != place
        ]


def test_crops_cover_the_share_of_the_area_that_was_asked_for() -> None:
    """On a ramp the range of values in a view, sampled corner to corner, is its window's width."""
    ramp = torch.arange(0, 128, dtype=torch.uint8).expand(64, 3, 128, 128).contiguous()
    batch = ImageBatch(ramp, torch.arange(64), tuple("p" * 64), 0)
    made = still(global_scale=(0.5, 1.0), local_scale=(0.05, 0.1), local_count=1, antialias=False)(
        batch
    )
    for view, low, high in ((made.global_views[0], 0.5, 1.0), (made.local_views[0], 0.05, 0.1)):
        across = view[:, 0].amax((1, 2)) - view[:, 0].amin((1, 2))
        width = across * 255 / 127
        assert (
            width.min() >= (low * 3 / 4) ** 0.5 - 0.02
            and width.max() <= min(1, (high * 4 / 3) ** 0.5) + 0.02
        )
        assert width.max() - width.min() > 0.05  # not the same window for all


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_count": 0},
        {"local_count": -1},
        {"local_size": 0},
        {"global_scale": (0.0, 1.0)},
        {"local_scale": (0.5, 0.2)},
        {"global_scale": (0.5, 1.2)},
        {"flip": 1.5},
        {"blur": (0.5, -0.1, 0.5)},
        {"blur_sigma": (0.0, 1.0)},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CropSettings(**wrong)  # type: ignore[arg-type]


def test_fine_stripes_do_not_become_coarse_ones() -> None:
    """Stripes of one pixel, in a view of a quarter of the side: grey."""
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(1, 3, 64, 64)
    batch = ImageBatch(stripes.contiguous(), torch.arange(1), ("p",), 0)
    spread = {
        antialias: float(still(antialias=antialias)(batch).global_views[0].std())
        for antialias in (True, False)
    }
    assert spread[True] < 0.1 < spread[False]


def test_antialiasing_changes_no_window(batch: ImageBatch) -> None:
    """What is enlarged is the same but for where pixels have their centres."""
    views = [
        still(global_size=64, antialias=antialias)(batch).global_views[0]
        for antialias in (True, False)
    ]
    assert (views[0] - views[1]).abs().mean() < 0.02
