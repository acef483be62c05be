"""Pictures beyond a bound are in a file, and the same."""

import gc
import os
import weakref

import numpy as np
import torch
from PIL import Image

from vpretrain.vision.data.files import Reading
from vpretrain.vision.data.images import Picture
from vpretrain.vision.data.labels import LabelCode
from vpretrain.vision.data.picture_store import PictureStore
from vpretrain.vision.data.readers import read_folder


def picture(at, side=5):
    draw = torch.Generator().manual_seed(at)
    pixels = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 7, (side, side), generator=draw) if at % 2 else None
    depth = torch.rand(side, side, generator=draw) if at % 3 else None
    return Picture(str(at), pixels, labels, depth, at, f"origin {at}")


def test_pictures_come_back_as_they_were():
    for bound in (0, 700, 1e9):
        store = PictureStore(bound)
        for at in range(9):
            store.add(picture(at))
        made = store.pictures()
        assert [each.digest() for each in made] == [picture(at).digest() for at in range(9)]
        assert [(p.name, p.category, p.origin) for p in made] == [
            (str(at), at, f"origin {at}") for at in range(9)
        ]
        assert (store.file is None) == (bound == 1e9)


def test_a_folder_reads_the_same_in_little_memory(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    draw = np.random.default_rng(0)
    for at in range(5):
        image = draw.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"images/{at}.png")
        label = draw.integers(0, 3, (8, 9), dtype=np.uint8)
        Image.fromarray(label).save(tmp_path / f"labels/{at}.png")
    sets = [
        read_folder(
            tmp_path / "images",
            tmp_path / "labels",
            reading=Reading(LabelCode(3), memory_bytes=bound),
        ).pictures
        for bound in (1e9, 1000)
    ]
    assert [p.digest() for p in sets[0]] == [p.digest() for p in sets[1]]


def test_pictures_beyond_the_bound_leave_memory():
    """Those in memory are the ones that were added; all others are views of one mapped file, and
    nothing keeps the tensors that they were read as."""
    store, added = PictureStore(250), []
    for at in range(0, 60, 6):  # 5 x 5 pixels without labels and depth: 75 bytes each
        each = picture(at)
        added.append(weakref.ref(each.pixels))
        store.add(each)
    del each
    gc.collect()
    assert [pixels() is not None for pixels in added] == [True] * 3 + [False] * 7
    storages = [p.pixels.untyped_storage() for p in store.pictures()]
    assert len({storage.data_ptr() for storage in storages[:3]}) == 3
    assert len({storage.data_ptr() for storage in storages[3:]}) == 1
    assert storages[3].nbytes() == os.fstat(store.file.fileno()).st_size
