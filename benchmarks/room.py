"""Frames of one room with their depth (7-Scenes) as the parquet files that
`recipes/vision/room.yaml` reads.

    git clone --bare https://github.com/andyzeng/tsdf-fusion-python
    python benchmarks/room.py tsdf-fusion-python.git --out DIR

1,000 frames of a camera that is carried through a room for half a minute, read from the
repository's objects. A frame is scaled so that its shorter side has 32 pixels, and its left and its
right 32 x 32 are two pictures. The walk is cut into stretches of a second, dealt out to the files
in turn, with ten frames left out between two, so that no picture is next to one of another file;
only `supervised` is the stream with its depth. Where the camera stood still, frames repeat, and one
of them is kept. Depth is that of the nearest pixel, in millimetres; what the sensor did not see is
0. Nothing of it belongs into this repository.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
from git_objects import contents, listed
from nuclei import png
from PIL import Image

FRAMES, STRETCH, GAP = 1000, 30, 10
TURNS = ("stream", "feedback", "stream", "probe", "stream", "test", "stream", "dev")
SIDE, WIDTH = 32, 43


def halves(colours: bytes, depth: bytes) -> list[tuple[bytes, bytes]]:
    """The left and the right of a frame, scaled."""
    size = (WIDTH, SIDE)
    pixels = numpy.asarray(Image.open(io.BytesIO(colours)).resize(size, Image.Resampling.BOX))
    metres = Image.open(io.BytesIO(depth)).resize(size, Image.Resampling.NEAREST)
    millimetres = numpy.asarray(metres).astype(numpy.uint16)
    return [
        (png(pixels[:, at : at + SIDE]), png(millimetres[:, at : at + SIDE]))
        for at in (0, WIDTH - SIDE)
    ]


def main() -> None:
    """Writes all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    objects = {path: name for name, path in listed(options.repository, "data/")}
    seen = set[bytes]()
    for name in dict.fromkeys(TURNS):
        starts = range(0, FRAMES, STRETCH + GAP)
        frames = [
            frame
            for turn, start in enumerate(starts)
            if TURNS[turn % len(TURNS)] == name
            for frame in range(start, start + STRETCH)
        ]
        files = [
            objects[f"data/frame-{frame:06d}.{kind}"]
            for frame in frames
            for kind in ("color.jpg", "depth.png")
        ]
        read = contents(options.repository, files)
        made = [
            half
            for colours, depth in zip(read[::2], read[1::2], strict=True)
            for half in halves(colours, depth)
        ]
        made = list({image: (image, depth) for image, depth in made if image not in seen}.values())
        seen.update(image for image, _ in made)
        random.Random(name).shuffle(made)
        columns = {"image": [image for image, _ in made]}
        labelled = columns | {"depth": [depth for _, depth in made]}
        written = (
            {"stream": columns, "supervised": labelled} if name == "stream" else {name: labelled}
        )
        for file, table in written.items():
            pyarrow.parquet.write_table(pyarrow.table(table), options.out / f"{file}.parquet")
        print(name, len(frames), "frames", len(made), "pictures", flush=True)


if __name__ == "__main__":
    main()
