"""What is wrong with labelled pictures is found by ``check``, before anything trains, and the file
is named.
"""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.vision.conftest import SCENES, SMALL, tiny_recipe
from vpretrain.studies.check import check
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision

WHERE = "data.feedback.sets.0.pictures"


def write(path: Path, values: numpy.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures with label and depth maps."""
    draw = numpy.random.default_rng(0)
    for at in range(12):
        write(
            tmp_path / f"images/{at:02}.png", draw.integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
        )
        write(tmp_path / f"labels/{at:02}.png", draw.integers(0, 7, (32, 32), dtype=numpy.uint8))
        write(
            tmp_path / f"depth/{at:02}.png", draw.integers(500, 9000, (32, 32), dtype=numpy.uint16)
        )
    return tmp_path


def description(
    folder: Path, maps: str = "labels: labels, classes: 7, depth: depth", *more: str
) -> list[str]:
    return [
        f"data.root={folder}",
        f"{WHERE}={{kind: folder, images: images, {maps}}}",
        "data.feedback.sets.0.train=5",
        "data.feedback.sets.0.meta=6",
        "data.feedback.tasks={segmentation: 1, depth: 1}",
        *more,
    ]


def found(*overrides: str) -> str:
    return "\n".join(
        str(problem) for problem in check("demo-vision", [*SMALL, *SCENES, *overrides])
    )


def label_of_another_size(folder: Path) -> Path:
    return write(folder / "labels/03.png", numpy.zeros((32, 31), numpy.uint8))


def class_out_of_range(folder: Path) -> Path:
    return write(folder / "labels/03.png", numpy.full((32, 32), 9, numpy.uint8))


def unreadable_image(folder: Path) -> Path:
    path = folder / "images/03.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def depth_without_a_valid_pixel(folder: Path) -> Path:
    return write(folder / "depth/03.png", numpy.zeros((32, 32), numpy.uint16))


def test_nothing_is_wrong_with_whole_files(folder: Path) -> None:
    assert found(*description(folder)) == ""


@pytest.mark.parametrize(
    "breaks",
    [label_of_another_size, class_out_of_range, unreadable_image, depth_without_a_valid_pixel],
)
def test_a_bad_file_is_named_or_left_out_and_named(
    breaks: Callable[[Path], Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = breaks(folder)
    assert str(path) in found(*description(folder))
    with pytest.raises(UserError, match=path.name):
        Vision().load(tiny_recipe(*description(folder)))
    capsys.readouterr()
    sets = Vision().load(tiny_recipe(*description(folder), "data.on_bad_row=skip")).sets
    assert len(sets.train) + len(sets.meta) == 11
    assert all(Path(picture.name).name != "03.png" for picture in [*sets.train, *sets.meta])
    said = capsys.readouterr().err.replace("\n", "")
    assert "1 pictures are left out" in said and path.name in said


def test_left_out_pictures_can_leave_too_few(folder: Path) -> None:
    unreadable_image(folder)
    shown = found(*description(folder), "data.on_bad_row=skip", "data.feedback.sets.0.meta=7")
    assert "data.feedback.sets.0.train" in shown and "11 in all" in shown


def test_a_task_without_targets_is_named(folder: Path) -> None:
    shown = found(*description(folder, "labels: labels, classes: 7"))
    assert (
        "data.feedback.sets" in shown
        and "depth" in shown
        and "nothing here can be learned" in shown
    )


def test_patches_that_do_not_tile_are_named() -> None:
    shown = found("learner.crops.local_size=15")
    assert "learner.crops.local_size" in shown and "multiples of 8" in shown
