"""Pictures beyond a bound are in a file, and the same."""

import subprocess
import sys

import numpy as np
import torch
from PIL import Image

from vpretrain.vision.data.files import Reading
from vpretrain.vision.data.images import Picture
from vpretrain.vision.data.kept import PictureStore
from vpretrain.vision.data.labels import LabelCode
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


MEMORY = """
import pathlib, torch
from vpretrain.vision.data.images import Picture
from vpretrain.vision.data.kept import PictureStore

def anonymous_mib():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024

before, store = anonymous_mib(), PictureStore(8 * 2**20)
for at in range(256):
    store.add(Picture(str(at), torch.full((3, 512, 512), at % 256, dtype=torch.uint8)))
pictures = store.pictures()
assert all(int(p.pixels.long().sum()) == 3 * 512 * 512 * (at % 256) for at, p in enumerate(pictures))
print(anonymous_mib() - before)
"""


def test_memory_is_bounded():
    """192 MiB of pictures, 8 of them in memory. What the system counts as the process's own is not
    the same at every look: pictures that are held are counted at each of three."""

    def mebibytes():
        done = subprocess.run(
            [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=90
        )
        return float(done.stdout)

    assert any(mebibytes() < 64 for _ in range(3))
