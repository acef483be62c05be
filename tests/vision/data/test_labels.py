"""What the numbers and colours of label maps mean, and where the maps of pictures are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vision.conftest import tiny_recipe
from vpretrain.system.errors import UserError
from vpretrain.vision.data.loading import _Reader

COLOURS = [(0, 0, 0), (128, 64, 128), (0, 0, 255)]
CLASSES = np.arange(32 * 32).reshape(32, 32) % 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures, and maps in numbers and in colours."""
    draw = np.random.default_rng(0)
    for part in ("images", "colours", "numbers", "palette", "masks", "together"):
        (tmp_path / part).mkdir()
    for at in range(12):
        classes = np.roll(CLASSES, at)
        picture = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(tmp_path / f"images/{at}.jpg")
        picture.save(tmp_path / f"together/{at}.jpg")
        Image.fromarray(np.array(COLOURS, np.uint8)[classes]).save(tmp_path / f"colours/{at}.png")
        numbers = Image.fromarray(np.array([7, 8, 11], np.uint8)[classes])
        numbers.save(tmp_path / f"numbers/{at}.png")
        numbers.save(tmp_path / f"masks/{at}_mask.png")
        numbers.save(tmp_path / f"together/{at}_mask.png")
        palette = Image.fromarray(classes.astype(np.uint8), "P")
        palette.putpalette([level for colour in COLOURS for level in colour])
        palette.save(tmp_path / f"palette/{at}.png")
    return tmp_path


def labels_of(folder: Path, maps: str, images: str = "images") -> list[np.ndarray]:
    """Of the pictures, in the order of their names."""
    spec = f"{{kind: folder, images: {images}, {maps}}}"
    recipe = tiny_recipe(
        f"data.root={folder}",
        f"data.evaluation.train=[{spec}]",
        f"data.stream.0.pictures={spec}",
    )
    reader = _Reader(recipe)
    pictures = reader.labelled(recipe.data.evaluation["train"][0], "data.evaluation.train.0")
    if reader.problems:
        raise UserError(*reader.problems)
    (source,) = reader.stream()
    assert len(source.pictures) == 12, "no map is a picture of the stream"
    named = {int(Path(picture.name).stem): picture for picture in pictures}
    return [named[at].labels.numpy() for at in range(12)]


@pytest.mark.parametrize("maps", ["colours", "palette"])
def test_colours_are_the_classes_that_the_recipe_says(folder: Path, maps: str) -> None:
    shown = [list(colour) for colour in COLOURS]
    result = labels_of(folder, f"labels: {maps}, label_colours: {shown}")
    assert all(np.array_equal(result[at], np.roll(CLASSES, at)) for at in range(12))
    turned = labels_of(folder, f"labels: {maps}, label_colours: {shown[::-1]}")
    assert np.array_equal(turned[0], 2 - CLASSES)


def test_numbers_are_mapped_several_to_one_class_and_255_is_none(folder: Path) -> None:
    (result, *_) = labels_of(folder, "labels: numbers, label_map: {7: 0, 8: 1, 11: 0}")
    assert np.array_equal(result, np.array([0, 1, 0])[CLASSES])
    for void in ("", ", void: 11"):
        (result, *_) = labels_of(
            folder, f"labels: numbers, label_map: {{7: 0, 8: 1, 11: 255}}{void}"
        )
        assert np.array_equal(result, np.array([0, 1, 255])[CLASSES])
    (result, *_) = labels_of(folder, "labels: numbers, label_map: {7: 0, 8: 1}, other_labels: void")
    assert np.array_equal(result, np.array([0, 1, 255])[CLASSES])


def test_numbers_that_are_listed_are_counted(folder: Path) -> None:
    """So that ``classes`` need not repeat how many there are."""
    (result, *_) = labels_of(folder, "labels: numbers, label_values: [8, 7, 11]")
    assert np.array_equal(result, np.array([1, 0, 2])[CLASSES])


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        ("labels: numbers, label_map: {7: 0, 8: 1}", ["out of range", "got       11"]),
        (
            "labels: colours, label_colours: [[0, 0, 0], [128, 64, 128]]",
            ["none of label_colours", "[0, 0, 255]", "other_labels: void"],
        ),
        ("labels: colours, classes: 3", ["no label map", "set label_colours"]),
        ("labels: masks, classes: 12", ["0_mask.png is there", "label_suffix: _mask"]),
        ("labels: numbers", ["label maps need `classes`"]),
        ("labels: images, classes: 12", ["need a `label_suffix`"]),
        ("labels: numbers, classes: 2, label_map: {7: 0, 8: 3}", ["there are 2"]),
        ("labels: numbers, label_map: {7: 0, 8: 255}", ["two or more"]),
        (
            "labels: numbers, label_map: {7: 0}, label_colours: [[0, 0, 0], [0, 0, 1]]",
            ["give one of"],
        ),
        ("labels: numbers, label_colours: [[0, 0, 0], [0, 0, 0]]", ["1 distinct colours"]),
        ("labels: colours, label_colours: [[0, 0, 0], [0, 0, 1]], void: 0", ["`void` is a number"]),
        ("labels: numbers, label_values: [3, 4], first_class: 3", ["`first_class` is the first"]),
        ("labels: numbers, label_values: [7, 8, 8]", ["2 distinct numbers for 3 classes"]),
        ("labels: numbers, label_values: [7]", ["label_values", "at least 2"]),
        ("labels: numbers, classes: 12, void: 0", ["void is 0", "number of a class"]),
        ("labels: numbers, label_values: [7, 8, 11], void: 8", ["void is 8"]),
        ("labels: numbers, label_map: {7: 0, 8: 1, 11: 1}, void: 11", ["void is 11"]),
    ],
)
def test_what_the_recipe_does_not_say_is_asked_for(
    folder: Path, maps: str, said: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        labels_of(folder, maps)
    for part in said:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(("images", "labels"), [("images", "masks"), ("together", "together")])
def test_maps_may_have_a_suffix_and_stand_beside_their_pictures(
    folder: Path, images: str, labels: str
) -> None:
    maps = f"labels: {labels}, label_suffix: _mask, label_values: [7, 8, 11], classes: 3"
    result = labels_of(folder, maps, images)
    assert all(np.array_equal(result[at], np.roll(CLASSES, at)) for at in range(12))
