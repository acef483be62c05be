"""The stream: which pictures come, in which order, and the same again after a restart."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from vpretrain.system.errors import UserError
from vpretrain.system.sampling import Order
from vpretrain.vision.data.images import Picture
from vpretrain.vision.data.scenes import Scenes
from vpretrain.vision.data.stream import Source, Stream


def plain(count: int, first: int = 0, height: int = 4, width: int = 4) -> list[Picture]:
    """Pictures whose pixels all say their number."""
    return [
        Picture(f"p{number}", torch.full((3, height, width), number, dtype=torch.uint8))
        for number in range(first, first + count)
    ]


def stream(
    *sources: Source,
    batch_size: int = 4,
    size: int = 4,
    seed: int = 0,
    load_size: int | None = None,
) -> Stream:
    return Stream(sources, batch_size=batch_size, size=size, seed=seed, load_size=load_size)


def test_a_pass_shows_every_picture_once_and_the_next_in_another_order() -> None:
    batches = stream(Source("a", plain(12)))
    passes = [torch.cat([next(batches).indices for _ in range(3)]).tolist() for _ in range(3)]
    assert all(sorted(indices) == list(range(12)) for indices in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    other = stream(Source("a", plain(12)), seed=1)
    assert torch.cat([next(other).indices for _ in range(3)]).tolist() != passes[0]


def test_a_batch_says_what_it_holds() -> None:
    batch = next(stream(Source("a", plain(6)), Source("b", plain(3, first=100))))
    assert (
        batch.tokens == 4
        and batch.pixels.shape == (4, 3, 4, 4)
        and batch.pixels.dtype == torch.uint8
    )
    for row, (index, name) in enumerate(zip(batch.indices.tolist(), batch.names, strict=True)):
        number = index if index < 6 else 100 + index - 6
        assert name == f"p{number}" and (batch.pixels[row] == number).all()
    moved = batch.to("cpu")
    assert (
        moved.digest() == batch.digest() and len(batch.digest()) == 16 and moved.seed == batch.seed
    )


def test_the_mixture_holds_in_every_stretch() -> None:
    sources = (
        Source("a", plain(5), 3.0),
        Source("b", plain(7, first=100), 1.0),
        Source("c", plain(1, first=200), 0.0),
    )
    batches = stream(*sources)
    for _ in range(10):
        assert Counter(name[1:2] if len(name) == 4 else "0" for name in next(batches).names) == {
            "0": 3,
            "1": 1,
        }


def test_batches_differ_in_digest_and_seed_and_seeds_repeat_with_the_stream() -> None:
    def next_batches(seed: int) -> list[tuple[str, int]]:
        return [(b.digest(), b.seed) for b in islice(stream(Source("a", plain(4)), seed=seed), 20)]

    first = next_batches(0)
    assert next_batches(0) == first
    assert len({seed for _, seed in first}) == len({digest for digest, _ in first}) == 20
    assert not {seed for _, seed in first} & {seed for _, seed in next_batches(1)}
    assert all(0 <= seed < 2**63 for _, seed in first)


@pytest.mark.parametrize("before", [0, 1, 5])
def test_resumed_equals_uninterrupted(before: int) -> None:
    def made() -> Stream:
        sources = (
            Source("a", Scenes("stream", 7, 16, 0), 2.0),
            Source("b", plain(3, height=20, width=24), 1.0),
        )
        return stream(*sources, size=12, load_size=16)

    whole, cut = made(), made()
    for _ in range(before):
        next(whole)
        next(cut)
    state = json.loads(json.dumps(cut.state_dict()))
    next(cut)  # what is drawn after the state was taken is drawn again
    resumed = made()
    resumed.load_state_dict(state)
    for _ in range(6):
        expected, got = next(whole), next(resumed)
        assert (got.digest(), got.seed, got.names) == (
            expected.digest(),
            expected.seed,
            expected.names,
        )


def test_a_state_of_another_stream_is_refused() -> None:
    state = stream(Source("a", plain(6))).state_dict()
    others = [
        stream(Source("a", plain(6)), seed=1),
        stream(Source("a", plain(6)), size=2, load_size=4),
        stream(Source("b", plain(6))),
        stream(Source("a", plain(6), 2.0)),
        stream(Source("a", plain(5))),
        stream(Source("a", plain(6, first=1))),
    ]
    for other in others:
        with pytest.raises(UserError, match="not as in the checkpoint"):
            other.load_state_dict(state)


def test_pictures_of_all_sizes_come_to_one_and_keep_their_proportions() -> None:
    # A picture of two halves, dark left and bright right: the window is as high as the picture and
    # slides along it.
    pixels = torch.zeros(3, 20, 40, dtype=torch.uint8)
    pixels[..., 20:] = 200
    wide = Picture("wide", pixels)
    batches = stream(
        Source("a", [wide, Picture("high", pixels.transpose(1, 2))]), batch_size=2, size=10
    )
    edges = set()
    for _ in range(30):
        batch = next(batches)
        assert batch.pixels.shape == (2, 3, 10, 10)
        row = batch.names.index("wide")
        picture = batch.pixels[row, 0].float()
        assert (picture.std(0) == 0).all()  # columns are constant: nothing turned or squeezed
        edges.add(int((picture[0] < 100).sum()))
    assert len(edges) > 4  # windows differ from pass to pass
    assert min(edges) >= 0 and max(edges) == 10


def test_load_size_says_how_much_of_a_picture_is_seen() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    whole = next(stream(Source("a", [Picture("p", ramp)]), batch_size=1, size=32)).pixels
    part = next(
        stream(Source("a", [Picture("p", ramp)]), batch_size=1, size=32, load_size=64)
    ).pixels
    assert int(whole.max()) - int(whole.min()) >= 61
    assert int(part.max()) - int(part.min()) == 31


def test_the_global_random_state_is_not_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batch = next(stream(Source("a", plain(9, height=8, width=12))))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert next(stream(Source("a", plain(9, height=8, width=12)))).digest() == batch.digest()


def test_an_order_can_be_entered_anywhere() -> None:
    order, other = Order(5, "k"), Order(5, "k")
    forward = [order[number] for number in range(15)]
    assert [other[number] for number in reversed(range(15))] == forward[::-1]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "nothing to train on"),
        ([Source("a", [])], "no pictures"),
        ([Source("a", plain(1)), Source("a", plain(1))], "same|this name"),
        ([Source("a", plain(1), -1.0)], "no share"),
        ([Source("a", plain(1), float("nan"))], "no share"),
        ([Source("a", plain(1), 0.0)], "all weights are zero"),
    ],
)
def test_sources_that_cannot_be(sources: list[Source], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Stream(sources, batch_size=1, size=4, seed=0)
    assert caught.value.problems[0].where == "data.stream"


def test_a_window_larger_than_its_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="no larger"):
        stream(Source("a", plain(1)), size=8, load_size=4)


@pytest.mark.data
def test_camvid_in_a_stream(shared_data: Path) -> None:
    from vpretrain.vision.data.readers import read_folder

    folder = shared_data / "camvid" / "val" / "images"
    if not folder.is_dir():
        pytest.skip(f"This test reads CamVid, and there is no folder {folder}.")
    pictures, *_ = read_folder(folder)
    batch = next(stream(Source("camvid", pictures), batch_size=8, size=64))
    assert batch.pixels.shape == (8, 3, 64, 64) and len(set(batch.names)) == 8
