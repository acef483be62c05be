"""Folders of pictures, labels and depth are read as they are meant, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vpretrain.system.errors import UserError
from vpretrain.vision.data.files import Files, Folder, Reading
from vpretrain.vision.data.images import IGNORE
from vpretrain.vision.data.labels import LabelCode
from vpretrain.vision.data.readers import (
    FolderContents,
    eigen_crop,
    read_ade20k,
    read_categories,
    read_folder,
    read_nyuv2,
)
from vpretrain.vision.evaluation.retrieval import read_retrieval


def write(path: Path, values: object, kind: type = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.asarray(values, kind))
    else:
        Image.fromarray(np.asarray(values, kind)).save(path)
    return path


def colours(seed: int = 0, height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3))


CAMVID = LabelCode(11, void=11)
READING = Reading(CAMVID)


def read_camvid(
    root: Path, split: str, *, reading: Reading = READING, **options: Any
) -> FolderContents:
    return read_folder(root / split / "images", root / split / "labels", reading=reading, **options)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Three pictures, labelled with classes 0..10 and void."""
    for number in range(3):
        write(tmp_path / "train" / "images" / f"{number}.png", colours(number))
        labels = np.arange(24).reshape(4, 6) % 12
        write(tmp_path / "train" / "labels" / f"{number}.png", labels)
    return tmp_path


def refused(read: object, *names: str) -> UserError:
    with pytest.raises(UserError) as caught:
        read()  # type: ignore[operator]
    for name in names:
        assert name in str(caught.value), str(caught.value)
    return caught.value


def test_a_folder_of_images_and_labels(camvid: Path) -> None:
    pictures, skipped, _ = read_camvid(camvid, "train")
    assert not skipped and len(pictures) == 3
    assert pictures[1].name == str(camvid / "train" / "images" / "1.png")
    assert np.array_equal(pictures[1].pixels.permute(1, 2, 0).numpy(), colours(1))
    assert pictures[1].labels.flatten().tolist() == [*range(11), IGNORE] * 2


@pytest.mark.parametrize("size", [None, 2, (8, 8)])
def test_pictures_are_the_same_kept_or_decoded_again(
    camvid: Path, size: int | tuple[int, int] | None
) -> None:
    reading, root = Reading(CAMVID, size=size), camvid / "train"
    kept, *_ = read_camvid(camvid, "train", reading=reading)
    names = [(root / "images" / f"{n}.png", root / "labels" / f"{n}.png") for n in range(3)]
    again = Folder([Files(*pair) for pair in names], reading)
    assert [kept[i].digest() for i in range(3)] == [again[i].digest() for i in range(len(again))]
    assert kept[0].size == {None: (4, 6), 2: (2, 3), (8, 8): (8, 8)}[size]


def test_images_alone_of_any_mode(tmp_path: Path) -> None:
    write(tmp_path / "b.png", colours()[..., 0])
    Image.fromarray(colours().astype(np.uint8)).convert("P").save(tmp_path / "c.png")
    write(tmp_path / "a.jpg", colours())
    (tmp_path / "notes.txt").write_text("no image")
    pictures, *_ = read_folder(tmp_path)
    assert [Path(pictures[i].name).name for i in range(len(pictures))] == [
        "a.jpg",
        "b.png",
        "c.png",
    ]
    assert torch.equal(pictures[1].pixels[0], pictures[1].pixels[2])
    assert pictures[0].labels is None and pictures[0].depth is None


def break_size(root: Path) -> Path:
    return write(root / "train" / "labels" / "1.png", np.zeros((6, 4)))


def break_class(root: Path) -> Path:
    return write(root / "train" / "labels" / "1.png", np.full((4, 6), 12))


def break_channels(root: Path) -> Path:
    return write(root / "train" / "labels" / "1.png", colours())


def break_image(root: Path) -> Path:
    path = root / "train" / "images" / "1.png"
    path.write_bytes(b"this is no image")
    return path


def break_end(root: Path) -> Path:
    path = write(root / "train" / "images" / "1.png", colours(9, 4, 6))
    path.write_bytes(path.read_bytes()[:-30])
    return path


def break_label(root: Path) -> Path:
    path = root / "train" / "labels" / "1.png"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    return path


def break_partner(root: Path) -> Path:
    (root / "train" / "labels" / "1.png").unlink()
    return root / "train" / "images" / "1.png"


BREAKS = [
    break_size,
    break_class,
    break_channels,
    break_image,
    break_end,
    break_label,
    break_partner,
]


@pytest.mark.parametrize("broken", BREAKS)
def test_bad_files_stop_by_name_or_are_left_out_and_named(camvid: Path, broken: object) -> None:
    path = broken(camvid)  # type: ignore[operator]
    error = refused(lambda: read_camvid(camvid, "train"), str(path), "1 of 3", "data.on_bad_row")
    assert error.problems[0].accepted
    pictures, skipped, _ = read_camvid(camvid, "train", on_bad_row="skip")
    assert [problem.where for problem in skipped] == [str(path)]
    assert [Path(pictures[i].name).stem for i in range(len(pictures))] == ["0", "2"]


def test_the_numbers_that_are_out_of_range_are_said(camvid: Path) -> None:
    write(camvid / "train" / "labels" / "2.png", np.array([[3, 40, 12, 11, 255, 0]] * 4))
    problem = refused(lambda: read_camvid(camvid, "train")).problems[0]
    assert (problem.value, problem.accepted) == ("12, 40", "0 to 10; without a label 11")


def test_nothing_left_is_an_error_even_when_skipping(camvid: Path) -> None:
    for path in (camvid / "train" / "images").iterdir():
        path.write_bytes(b"")
    refused(lambda: read_camvid(camvid, "train", on_bad_row="skip"), "3 of 3", "0.png")


def test_many_bad_files_are_counted(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    error = refused(lambda: read_folder(tmp_path), "9 of 9")
    assert len(error.problems) == 6


def test_folders_that_are_missing_or_empty(camvid: Path, tmp_path: Path) -> None:
    refused(lambda: read_camvid(camvid, "tset"), "tset", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(lambda: read_folder(tmp_path / "empty"), "empty", "0 images")
    file = write(tmp_path / "one.png", colours())
    refused(lambda: read_folder(file), "one.png", "file")
    refused(
        lambda: read_folder(
            camvid / "train" / "images", tmp_path / "gone", reading=Reading(LabelCode(11))
        ),
        "gone",
    )


def test_a_file_that_breaks_after_the_check_is_named_when_it_is_drawn(camvid: Path) -> None:
    pictures, *_ = read_categories(camvid / "train", ("images", "labels"))
    path = break_image(camvid)
    refused(lambda: pictures[1], str(path))


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    write(tmp_path / "images" / "validation" / "ADE_val_00000001.jpg", colours(0, 2, 2))
    write(tmp_path / "annotations" / "validation" / "ADE_val_00000001.png", [[0, 1], [2, 150]])
    pictures, *_ = read_ade20k(tmp_path, "validation")
    assert pictures[0].labels.tolist() == [[IGNORE, 0], [1, 149]]
    write(tmp_path / "annotations" / "validation" / "ADE_val_00000001.png", [[0, 1], [2, 151]])
    error = refused(lambda: read_ade20k(tmp_path, "validation"), "ADE_val_00000001.png")
    assert (error.problems[0].value, error.problems[0].accepted) == (
        "151",
        "1 to 150; without a label 0",
    )


def test_nyuv2_in_millimetres_or_metres(tmp_path: Path) -> None:
    for number in (0, 1):
        write(tmp_path / "train" / "rgb" / f"{number}.png", colours(number, 2, 3))
    write(tmp_path / "train" / "depth" / "0.png", [[0, 1, 2], [1500, 10000, 10001]], np.uint16)
    metres = [[float("nan"), -1, 2.5], [float("inf"), 9.5, 11]]
    write(tmp_path / "train" / "depth" / "1.npy", metres, np.float64)
    pictures, *_ = read_nyuv2(tmp_path, "train")
    expected = torch.tensor([[0, 0, 0.002], [1.5, 10, 0]])
    assert torch.allclose(pictures[0].depth, expected) and pictures[0].depth.dtype == torch.float32
    assert torch.equal(pictures[1].depth, torch.tensor([[0, 0, 2.5], [0, 9.5, 0]]))


def test_capital_endings_are_those_of_their_kind(tmp_path: Path) -> None:
    write(tmp_path / "train" / "rgb" / "0.PNG", colours(0, 2, 3))
    (tmp_path / "train" / "depth").mkdir()
    with (tmp_path / "train" / "depth" / "0.NPY").open("wb") as file:
        np.save(file, np.full((2, 3), 2.5, np.float32))
    pictures, *_ = read_nyuv2(tmp_path, "train")
    assert pictures[0].depth.tolist() == [[2.5] * 3] * 2


@pytest.mark.parametrize(
    ("name", "values", "kind", "said"),
    [
        ("0.png", np.zeros((2, 3)), np.uint16, "no valid pixel"),
        (
            "0.npy",
            np.full((2, 3), 2500.0),
            np.float32,
            "2500 to 2500 metres",
        ),  # millimetres by mistake
        ("0.npy", np.full((2, 3), np.nan), np.float32, "no valid pixel"),
        ("0.npy", np.full((2, 3), 2500), np.uint16, "metres"),
        ("0.png", np.full((2, 3), 200), np.uint8, "16 bits"),
        ("0.npy", np.ones((3, 2)), np.float32, "3 x 2"),
        ("1.npy", np.ones((2, 3)), np.float32, "no depth map"),
    ],
)
def test_bad_depth_is_refused(
    tmp_path: Path, name: str, values: np.ndarray, kind: type, said: str
) -> None:
    write(tmp_path / "train" / "rgb" / "0.png", colours(0, 2, 3))
    write(tmp_path / "train" / "depth" / name, values, kind)
    refused(lambda: read_nyuv2(tmp_path, "train"), str(tmp_path / "train"), said)


def test_a_truncated_depth_file(tmp_path: Path) -> None:
    write(tmp_path / "train" / "rgb" / "0.png", colours(0, 2, 3))
    path = write(tmp_path / "train" / "depth" / "0.npy", np.ones((2, 3)), np.float32)
    path.write_bytes(path.read_bytes()[:-4])
    refused(lambda: read_nyuv2(tmp_path, "train"), str(path))


def test_the_eigen_crop() -> None:
    mask = eigen_crop(torch.zeros(2, 480, 640))
    assert mask.shape == (2, 480, 640) and int(mask[0].sum()) == 426 * 560
    assert mask[1, 45, 41] and mask[1, 470, 600]
    assert not (
        mask[:, 44].any() or mask[:, 471].any() or mask[..., 40].any() or mask[..., 601].any()
    )
    half = eigen_crop(torch.zeros(240, 320))
    assert int(half.sum()) == pytest.approx(426 * 560 / 4, rel=0.01)


def test_categories_by_the_names_of_folders(tmp_path: Path) -> None:
    for folder, count in (("n02", 1), ("n01", 2), ("n10", 1)):
        for number in range(count):
            write(tmp_path / folder / f"{folder}_{number}.JPEG", colours(number, 8, 8))
    pictures, *_ = read_categories(tmp_path)
    assert [pictures[i].category for i in range(4)] == [0, 0, 1, 2]
    (tmp_path / "n02" / "n02_0.JPEG").write_bytes(b"\xff\xd8\xff")
    refused(lambda: read_categories(tmp_path), "n02_0.JPEG")
    left, skipped, _ = read_categories(tmp_path, on_bad_row="skip")
    assert [left[i].category for i in range(len(left))] == [0, 0, 2] and len(skipped) == 1
    unchecked, *_ = read_categories(tmp_path, check=False)
    assert len(unchecked) == 4
    refused(lambda: unchecked[2], "n02_0.JPEG")
    (tmp_path / "n03").mkdir()
    refused(lambda: read_categories(tmp_path), "n03", "0 images")


def retrieval(root: Path, **changes: object) -> Path:
    for number, name in enumerate(("a", "b", "c", "q")):
        write(root / f"{name}.jpg", colours(number, 20, 30))
    row = {"bbx": [4.5, 2.0, 24.9, 17.2], "easy": [0], "hard": [2], "junk": [1]} | changes
    truth = root / "truth.json"
    truth.write_text(json.dumps({"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": [row]}))
    return truth


def test_retrieval_reads_truth_and_cuts_queries(tmp_path: Path) -> None:
    made = read_retrieval(retrieval(tmp_path), tmp_path)
    assert len(made.database) == 3 and len(made.queries) == 1
    assert (made.relevance[0].easy, made.relevance[0].hard, made.relevance[0].junk) == (
        (0,),
        (2,),
        (1,),
    )
    assert made.database[1].size == (20, 30)
    whole = np.asarray(Image.open(tmp_path / "q.jpg"))
    assert np.array_equal(made.queries[0].pixels.permute(1, 2, 0).numpy(), whole[2:17, 4:24])


def test_retrieval_refuses_what_does_not_fit(tmp_path: Path) -> None:
    refused(lambda: read_retrieval(retrieval(tmp_path, easy=[3]), tmp_path), "gnd[0]")
    refused(lambda: read_retrieval(retrieval(tmp_path, easy=[2]), tmp_path), "gnd[0]")
    refused(lambda: read_retrieval(retrieval(tmp_path, junk="none"), tmp_path), "truth.json")
    outside = read_retrieval(retrieval(tmp_path, bbx=[0, 0, 31, 20]), tmp_path)
    refused(lambda: outside.queries[0], "q.jpg")
    (tmp_path / "b.jpg").unlink()
    refused(lambda: read_retrieval(tmp_path / "truth.json", tmp_path), "b.jpg")
    refused(lambda: read_retrieval(tmp_path / "gone.json", tmp_path), "gone.json")


@pytest.mark.data
def test_camvid_as_it_is(shared_data: Path) -> None:
    root = shared_data / "camvid"
    if not root.is_dir():
        pytest.skip(f"This test reads CamVid, and there is no folder {root}.")
    pictures, skipped, _ = read_camvid(root, "val")
    assert (len(pictures), skipped) == (101, [])
    labels = torch.stack([pictures[i].labels for i in range(101)])
    assert labels.shape[1:] == (180, 240)
    assert labels.unique().tolist() == [*range(11), IGNORE]
