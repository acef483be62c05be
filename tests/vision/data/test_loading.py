"""What is wrong with labelled pictures is found by ``check``, before anything trains, and the file
is named.
"""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from tests.vision.conftest import SCENES, SMALL, tiny_recipe
from vpretrain.studies.check import check
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision
from vpretrain.vision.data.files import Folder
from vpretrain.vision.data.images import content_id

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


def problems(*overrides: str) -> str:
    return "\n".join(map(str, check("demo-vision", [*SMALL, *SCENES, *overrides])))


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
    assert problems(*description(folder)) == ""


@pytest.mark.parametrize(
    "breaks",
    [label_of_another_size, class_out_of_range, unreadable_image, depth_without_a_valid_pixel],
)
def test_a_bad_file_is_named_or_left_out_and_named(
    breaks: Callable[[Path], Path], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = breaks(folder)
    assert str(path) in problems(*description(folder))
    with pytest.raises(UserError, match=path.name):
        Vision().load(tiny_recipe(*description(folder)))
    caplog.clear()
    sets = Vision().load(tiny_recipe(*description(folder), "data.on_bad_row=skip")).sets
    assert len(sets.train) + len(sets.meta) == 11
    assert all(Path(picture.name).name != "03.png" for picture in [*sets.train, *sets.meta])
    said = caplog.text.replace("\n", "")
    assert "1 pictures are left out" in said and path.name in said


def test_left_out_pictures_can_leave_too_few(folder: Path) -> None:
    unreadable_image(folder)
    shown = problems(*description(folder), "data.on_bad_row=skip", "data.feedback.sets.0.meta=7")
    assert "data.feedback.sets.0.train" in shown and "11 in all" in shown


def test_a_task_without_targets_is_named(folder: Path) -> None:
    shown = problems(*description(folder, "labels: labels, classes: 7"))
    assert (
        "data.feedback.sets" in shown
        and "depth" in shown
        and "nothing here can be learned" in shown
    )


def test_patches_that_do_not_tile_are_named() -> None:
    shown = problems("learner.crops.local_size=15")
    assert "learner.crops.local_size" in shown and "multiples of 8" in shown


STREAM = "data.stream.0.pictures={kind: folder, images: images}"


def test_pictures_that_are_evaluated_on_are_refused_in_the_stream(folder: Path) -> None:
    test = "data.evaluation.test=[{kind: folder, images: held, labels: labels, classes: 7}]"
    draw = numpy.random.default_rng(1)
    for at in range(6):
        write(folder / f"held/{at:02}.png", draw.integers(0, 256, (64, 48, 3), dtype=numpy.uint8))
        write(folder / f"labels/{at:02}.png", draw.integers(0, 7, (64, 48), dtype=numpy.uint8))
    options = [f"data.root={folder}", STREAM, test, "evaluate.probes=[segmentation]"]
    assert problems(*options) == ""
    # the same picture under another name and format is read at another size than in the test set
    Image.open(folder / "held/03.png").save(folder / "images/other.bmp")
    shown = problems(*options)
    assert "data.stream.0.pictures" in shown and "other.bmp" in shown and "held/03.png" in shown
    assert "also in data.evaluation.test" in shown


def test_files_that_are_evaluated_on_are_found_in_a_stream_that_is_not_decoded(
    folder: Path,
) -> None:
    for name in ("n0", "n1"):
        for path in (folder / "images").iterdir():
            values = numpy.asarray(Image.open(path)) ^ (1 if name == "n0" else 2)
            write(folder / "categories" / name / path.name, values)
    stream = "data.stream.0.pictures={kind: imagenet, path: categories}"
    test = "data.evaluation.test=[{kind: folder, images: images, labels: labels, classes: 7}]"
    options = [f"data.root={folder}", stream, test, "evaluate.probes=[segmentation]"]
    assert problems(*options) == ""
    shutil.copy(folder / "images/05.png", folder / "categories/n1/copy.png")
    part = "data.stream.0.pictures={kind: imagenet, path: categories, skip: 13}"
    for chosen in ([], [part]):  # the first category has 12 pictures, the second the copy too
        shown = problems(*options, *chosen)
        assert "data.stream.0.pictures" in shown and "copy.png" in shown and "05.png" in shown
    without = "data.stream.0.pictures={kind: imagenet, path: categories, count: 12}"
    assert problems(*options, without) == ""


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_members_that_are_evaluated_on_are_found_in_a_stream_that_is_not_decoded(
    kind: str, folder: Path
) -> None:
    """Of the same shard, and of a file that was packed into one."""
    images = sorted((folder / "images").iterdir())
    path = "set.tar"
    if kind == "webdataset":
        with tarfile.open(folder / path, "w") as tar:
            for at, image in enumerate(images):
                for ending, source in (("jpg", image), ("seg.png", folder / "labels" / image.name)):
                    tar.add(source, f"{at:02}.{ending}")
        parts = "labels: seg.png"
    else:
        path, parts = "set.parquet", "labels: mask"
        rows = [
            {"image": image.read_bytes(), "mask": (folder / "labels" / image.name).read_bytes()}
            for image in images
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / path)
    packed = f"kind: {kind}, path: {path}, check: false"
    options = [f"data.root={folder}", "evaluate.probes=[segmentation]"]
    options.append(f"data.stream.0.pictures={{{packed}}}")
    folders = "kind: folder, images: images, labels: labels"
    for evaluated in (f"{packed}, {parts}", folders):
        test = f"data.evaluation.test=[{{{evaluated}, classes: 7, count: 3}}]"
        shown = problems(*options, test)
        assert "data.stream.0.pictures" in shown and "3 of these pictures" in shown
    skipped = f"data.stream.0.pictures={{{packed}, skip: 3}}"
    assert problems(*options, test, skipped) == ""


def test_pictures_of_a_stream_are_not_hashed_when_they_are_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "categories").mkdir()
    shutil.copytree(folder / "images", folder / "categories/n0")
    stream = "data.stream.0.pictures={kind: imagenet, path: categories}"
    (source,) = Vision().load(tiny_recipe(f"data.root={folder}", stream)).sets.stream
    assert isinstance(source.pictures, Folder)
    known = source.pictures.identified(3)
    monkeypatch.delattr("vpretrain.vision.data.files.content_id")
    assert torch.equal(source.pictures[3].pixels, known.pixels)
    assert known.origin == content_id(known.pixels)


def test_scenes_that_are_evaluated_on_are_refused_in_the_stream() -> None:
    assert "data.stream.0.pictures" in problems("data.stream.0.pictures.split=test")
    assert problems("data.stream.0.pictures.split=test", "data.stream.0.pictures.seed=3") == ""


def test_copies_in_the_stream_are_counted_and_left_out_when_asked(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for at in (1, 2):
        Image.open(folder / "images/04.png").save(folder / f"images/copy{at}.bmp")
    options = [f"data.root={folder}", STREAM]
    sets = Vision().load(tiny_recipe(*options)).sets
    said = caplog.text.replace("\n", "")
    assert len(sets.stream[0].pictures) == 14
    assert "2 of 14 pictures are exact copies" in said and "data.duplicates=drop" in said
    assert "copy1.bmp" in said and "04.png" in said
    caplog.clear()
    sets = Vision().load(tiny_recipe(*options, "data.duplicates=drop")).sets
    kept = sets.stream[0].pictures
    names = {Path(kept[at].name).name for at in range(len(kept))}
    assert len(kept) == 12 and not names & {"copy1.bmp", "copy2.bmp"}
    assert "copies" not in caplog.text


def test_a_source_of_nothing_but_copies_is_named(folder: Path) -> None:
    shutil.copytree(folder / "images", folder / "again")
    sources = [
        f"{{name: {n}, pictures: {{kind: folder, images: {n}}}}}" for n in ("images", "again")
    ]
    options = [f"data.root={folder}", f"data.stream=[{', '.join(sources)}]"]
    assert problems(*options) == ""
    shown = problems(*options, "data.duplicates=drop")
    assert "data.stream.1: all of its pictures are copies of earlier sources" in shown


CATEGORIES = "{{kind: imagenet, path: {0}}}"


def test_categories_are_those_of_the_first_set_by_name(folder: Path) -> None:
    """A split may lack a category; else all after it would count as their neighbours."""
    there = {"train": ("cat", "dog", "eel"), "val": ("cat", "eel"), "other": ("cat", "emu")}
    for part, names in there.items():
        for name in names:
            (folder / part / name).mkdir(parents=True)
    for part, names in there.items():
        for at, image in enumerate(sorted((folder / "images").iterdir())):
            values = numpy.asarray(Image.open(image)) ^ len(part)
            write(folder / part / names[at % len(names)] / image.name, values)
    options = [f"data.root={folder}", "data.feedback.tasks={classification: 1}"]
    options += [f"data.feedback.sets.0.pictures={CATEGORIES.format('train')}"]
    options += [f"data.evaluation.train=[{CATEGORIES.format('train')}]"]
    options += ["evaluate.probes=[classification]"]
    sets = (
        Vision()
        .load(tiny_recipe(*options, f"data.evaluation.test=[{CATEGORIES.format('val')}]"))
        .sets
    )
    for picture in [*sets.train, *sets.meta, *sets.probed, *sets.evaluation]:
        assert there["train"][picture.category] == Path(picture.name).parent.name
    assert {picture.category for picture in sets.evaluation} == {0, 2}
    shown = problems(*options, f"data.evaluation.test=[{CATEGORIES.format('other')}]")
    assert str(folder / "other") in shown and "emu" in shown and "cat, dog, eel" in shown


def test_files_that_are_not_read_are_counted_by_check(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "images/a.heic").write_bytes(b"x")
    assert problems(f"data.root={folder}", STREAM) == ""
    assert "some files are not read" in caplog.text.replace("\n", "")


def test_masks_of_0_and_255_are_asked_about_in_a_recipe(folder: Path) -> None:
    for at in range(12):
        mask = numpy.random.default_rng(at).choice(numpy.array([0, 255], numpy.uint8), (32, 32))
        write(folder / f"labels/{at:02}.png", mask)
    options = description(folder, "labels: labels, classes: 2")
    options[-1] = "data.feedback.tasks={segmentation: 1}"
    assert "Is 255 a class" in problems(*options)
    right = description(folder, "labels: labels, classes: 2, label_values: [0, 255]")
    assert "Is 255 a class" not in problems(*right)
    assert "classes" in problems(*description(folder, "labels: labels, classes: 1"))
    assert "label_values" in problems(
        *description(folder, "labels: labels, classes: 3, label_values: [0, 255]")
    )


def test_backgrounds_and_white_are_recipe_values(folder: Path) -> None:
    write(folder / "images/00.png", numpy.full((32, 32), 4095, numpy.uint16))
    options = [f"data.root={folder}", STREAM]
    assert "data.white_level" in problems(*options)
    assert problems(*options, "data.white_level=4095") == ""
    clear = numpy.zeros((32, 32, 4), numpy.uint8)
    write(folder / "images/00.png", clear)
    recipe = tiny_recipe(*options, "data.background=[1, 2, 3]")
    picture = Vision().load(recipe).sets.stream[0].pictures[0]
    assert picture.pixels[:, 0, 0].tolist() == [1, 2, 3]


def test_more_prototypes_than_pictures_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    head = "learner.head={hidden: [32], bottleneck: 16, prototypes: 8192}"
    assert problems(head) == ""
    shown = caplog.text
    assert "learner.head.prototypes: more prototypes than the stream has pictures (12)" in shown
    assert "such as 64" in shown
    caplog.clear()
    problems()
    assert "prototypes" not in caplog.text


def test_a_class_that_no_feedback_picture_holds_is_warned_about(
    tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    draw = numpy.random.default_rng(0)
    for part, classes in (("train", 2), ("test", 4)):
        for at in range(12):
            maps = {
                "images": draw.integers(0, 256, (32, 32, 3), dtype=numpy.uint8),
                "labels": draw.integers(0, classes, (32, 32), dtype=numpy.uint8),
            }
            for name, values in maps.items():
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / part / name / f"{at}.png")
    folder = "{{kind: folder, images: {0}/images, labels: {0}/labels, classes: 4}}"
    options = [
        f"data.root={tmp_path}",
        f"data.feedback.sets.0.pictures={folder.format('train')}",
        f"data.evaluation.train=[{folder.format('train')}]",
        f"data.evaluation.test=[{folder.format('test')}]",
        "data.feedback.tasks={segmentation: 1}",
        "evaluate.probes=[segmentation]",
    ]
    assert problems(*options) == ""
    shown = caplog.text
    assert "no feedback picture holds these classes" in shown and "segmentation: 2, 3" in shown
    assert "no picture that probes learn from holds these classes" in shown


@pytest.mark.parametrize("key", ["data.batch_size", "data.meta_batch_size"])
def test_a_batch_larger_than_the_stream_is_refused(key: str) -> None:
    shown = problems(f"{key}=13")
    assert key in shown and "1 to 12" in shown and "more than once" in shown
    assert problems(f"{key}=12") == ""


def test_a_meta_batch_larger_than_the_set_is_refused() -> None:
    assert "data.feedback.batch_size" in problems("data.feedback.batch_size=4")


def test_warnings_of_a_run_are_those_of_its_sets(caplog: pytest.LogCaptureFixture) -> None:
    head = "learner.head={hidden: [32], bottleneck: 16, prototypes: 4096}"
    recipe = tiny_recipe(head, "designer.meta_images=4", "evaluate.probes=[depth]")
    (warning,) = Vision().load(recipe).sets.warnings
    assert warning.where == "learner.head.prototypes" and warning.value == "4096"
    assert "4096" in caplog.text


def test_more_pictures_than_there_are_is_warned_of(folder: Path) -> None:
    spec = "{kind: folder, images: images, skip: 2, count: 99}"
    sets = Vision().load(tiny_recipe(f"data.root={folder}", f"data.stream.0.pictures={spec}")).sets
    (warning,) = (each for each in sets.warnings if each.where.endswith(".count"))
    assert warning.where == "data.stream.0.pictures.count" and "no more than 10" in warning.message
