"""What people's picture files hold is read as they see it, or refused by name.

The files are made with PIL and numpy, as other programs write them.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from vpretrain.system.errors import UserError
from vpretrain.vision.data.decoding import Decoding
from vpretrain.vision.data.files import Reading
from vpretrain.vision.data.images import IGNORE
from vpretrain.vision.data.labels import LabelCode
from vpretrain.vision.data.readers import read_categories, read_folder


def only(folder, **options):
    """The single picture of a folder, [H, W, 3]."""
    pictures, *_ = read_folder(folder, **options)
    assert len(pictures) == 1
    return pictures[0].pixels.permute(1, 2, 0).numpy()


def white_level(level):
    return Reading(decoding=Decoding(white_level=level))


def refusal(folder, *names, **options):
    with pytest.raises(UserError) as caught:
        read_folder(folder, **options)
    for name in names:
        assert name in str(caught.value), str(caught.value)


# Masks of 0 and 255.


def masks(folder: Path, *values: int) -> Path:
    draw = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for at in range(3):
        Image.fromarray(draw.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(
            folder / f"images/{at}.jpg"
        )
        mask = np.resize(np.array(values, np.uint8), (4, 6))
        Image.fromarray(mask).save(folder / f"labels/{at}.png")
    return folder


@pytest.mark.parametrize("classes", [2, 3, 255])
def test_masks_of_0_and_255_ask_whether_255_is_a_class(classes, tmp_path):
    folder = masks(tmp_path, 0, 255)
    refusal(
        folder / "images",
        "one class",
        "Is 255 a class",
        "label_values: [0, 255]",
        labels=folder / "labels",
        reading=Reading(LabelCode(classes)),
    )


def test_255_is_a_class_where_it_is_said_so(tmp_path):
    folder = masks(tmp_path, 0, 255)
    reading = Reading(LabelCode(2, values=(0, 255)))
    pictures, *_ = read_folder(folder / "images", folder / "labels", reading=reading)
    assert pictures[0].labels[0].tolist() == [0, 1, 0, 1, 0, 1]
    swapped = Reading(LabelCode(2, void=7, values=(255, 0)))
    pictures, *_ = read_folder(folder / "images", folder / "labels", reading=swapped)
    assert pictures[0].labels[0].tolist() == [1, 0, 1, 0, 1, 0]


def test_255_stays_void_beside_two_classes(tmp_path):
    folder = masks(tmp_path, 0, 1, 255)
    pictures, *_ = read_folder(folder / "images", folder / "labels", reading=Reading(LabelCode(2)))
    assert pictures[0].labels[0].tolist() == [0, 1, IGNORE, 0, 1, IGNORE]


def test_one_class_is_refused(tmp_path):
    folder = masks(tmp_path, 1)
    reading = Reading(LabelCode(3))
    refusal(folder / "images", "one class", labels=folder / "labels", reading=reading)
    with pytest.raises(ValueError, match="2 to 255 classes"):
        LabelCode(1)


def test_label_values_that_are_not_there_are_named(tmp_path):
    folder = masks(tmp_path, 0, 128, 255)
    reading = Reading(LabelCode(2, values=(0, 255)))
    refusal(folder / "images", "128", "0, 255", labels=folder / "labels", reading=reading)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_masks_saved_with_more_channels_are_read(mode, tmp_path):
    folder = masks(tmp_path, 0, 1)
    for path in (folder / "labels").iterdir():
        Image.open(path).convert(mode).save(path)
    reading = Reading(LabelCode(2))
    pictures, *_ = read_folder(folder / "images", folder / "labels", reading=reading)
    assert pictures[0].labels[0].tolist() == [0, 1, 0, 1, 0, 1]


# Pixels of more than 8 bits.


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_16_bits_is_scaled_by_its_range(ending, tmp_path):
    values = np.linspace(0, 28270, 24).reshape(4, 6).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    assert np.array_equal(only(tmp_path)[..., 1], np.round(values / 257))
    assert only(tmp_path).mean() == pytest.approx(55, abs=0.5)


def test_a_big_endian_tiff_is_the_same(tmp_path):
    values = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    Image.frombytes("I;16B", (6, 4), values.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert np.array_equal(only(tmp_path)[..., 0], np.round(values / 257))


def test_a_tiff_whose_white_is_zero_is_not_inverted(tmp_path):
    values = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0  # PhotometricInterpretation: WhiteIsZero
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with Image.open(tmp_path / "a.tif") as image:
        if image.tag_v2[262] != 0:  # Pillow writes what it thinks right
            at = data.index(struct.pack("<HHI", 262, 3, 1))
            data[at + 8 : at + 10] = struct.pack("<H", 0)
            (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(only(tmp_path)[..., 0], 255 - np.round(values / 257))


def test_12_bits_in_16_are_asked_about(tmp_path):
    values = np.linspace(0, 4095, 24).reshape(4, 6).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    refusal(tmp_path, "a.png", "which number is white", "data.white_level", "4095")
    assert np.array_equal(
        only(tmp_path, reading=white_level(4095))[..., 2], np.round(values / 4095 * 255)
    )


def test_a_black_picture_is_black(tmp_path):
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "a.png")
    assert only(tmp_path).max() == 0


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_floats_and_32_bits_are_refused_unless_white_is_known(kind, tmp_path):
    values = np.linspace(0, 200, 24).reshape(4, 6).astype(kind)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    refusal(tmp_path, "a.tiff", "which number is white", "data.white_level")
    expected = np.floor(values / 200 * 255 + 0.5)
    assert np.array_equal(only(tmp_path, reading=white_level(200.0))[..., 0], expected)
    refusal(tmp_path, "brighter than white", reading=white_level(100.0))


def test_numbers_that_are_no_brightness_are_refused(tmp_path):
    Image.fromarray(np.full((4, 6), -1.0, np.float32)).save(tmp_path / "a.tif")
    refusal(tmp_path, "a.tif", "no brightness", reading=white_level(1.0))
    Image.fromarray(np.full((4, 6), np.nan, np.float32)).save(tmp_path / "a.tif")
    refusal(tmp_path, "a.tif", "no brightness", reading=white_level(1.0))


def test_masks_of_one_bit_are_black_and_white_pictures(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert only(tmp_path)[0, :, 0].tolist() == [255, 0]


# EXIF orientation.

ORIENTATION = 0x0112
WRITTEN = {  # how a camera stores an upright picture, by the tag that says how to turn it back
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


def corners(height, width):
    """Four areas of distinct grey; JPEG keeps them within a few levels."""
    areas = np.array([[0, 80], [160, 240]], np.uint8)
    return np.kron(areas, np.ones((height // 2, width // 2), np.uint8))


def saved_turned(values, path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(WRITTEN[orientation](values))
    Image.fromarray(stored).save(path, exif=exif if path.suffix == ".tiff" else exif.tobytes())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("height", "width"), [(32, 48), (32, 32)])
def test_pictures_are_turned_upright_under_their_labels(orientation, height, width, tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    upright = corners(height, width)
    saved_turned(np.stack([upright] * 3, -1), tmp_path / "images/a.jpg", orientation)
    Image.fromarray(upright // 80).save(tmp_path / "labels/a.png")
    pictures, *_ = read_folder(
        tmp_path / "images", tmp_path / "labels", reading=Reading(LabelCode(4))
    )
    pixels, labels = pictures[0].pixels[0].int(), pictures[0].labels
    assert pixels.shape == labels.shape == (height, width)
    assert (pixels - 80 * labels).abs().max() < 20


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_label_maps_are_turned_by_their_own_tag(orientation, ending, tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    upright = corners(32, 48)
    Image.fromarray(upright).save(tmp_path / "images/a.png")
    saved_turned(upright // 80, tmp_path / f"labels/a.{ending}", orientation)
    pictures, *_ = read_folder(
        tmp_path / "images", tmp_path / "labels", reading=Reading(LabelCode(4))
    )
    assert np.array_equal(pictures[0].labels.numpy(), upright // 80)


def test_broken_exif_turns_nothing(tmp_path):
    Image.fromarray(corners(32, 48)).save(tmp_path / "a.jpg", exif=b"Exif\0\0broken")
    assert only(tmp_path).shape == (32, 48, 3)


# Transparency.


def test_hidden_colours_stay_hidden(tmp_path):
    values = np.zeros((1, 3, 4), np.uint8)
    values[..., 0] = 200  # red everywhere
    values[0, :, 3] = (0, 128, 255)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert only(tmp_path)[0].tolist() == [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    black = Reading(decoding=Decoding(background=(0, 0, 0)))
    assert only(tmp_path, reading=black)[0].tolist() == [[0, 0, 0], [100, 0, 0], [200, 0, 0]]


def test_transparent_palettes_grey_and_colour_keys(tmp_path):
    grey = np.array([[[60, 0], [60, 255]]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert only(tmp_path)[0, :, 0].tolist() == [255, 60]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "a.png", transparency=0)
    assert only(tmp_path)[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(
        tmp_path / "a.png", transparency=(1, 2, 3)
    )
    assert only(tmp_path)[0].tolist() == [[255, 255, 255], [4, 5, 6]]


# Folders as people have them.


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (4, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_nested_folders_are_read_with_their_maps(tmp_path):
    for at, name in enumerate(("b/1", "a/x/2", "3")):
        picture(tmp_path / f"images/{name}.png", at)
        path = tmp_path / f"labels/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.resize(np.array([at, 3], np.uint8), (4, 6))).save(path)
    pictures, skipped, warnings = read_folder(
        tmp_path / "images", tmp_path / "labels", reading=Reading(LabelCode(4))
    )
    assert not skipped and not warnings
    assert {
        Path(p.name).relative_to(tmp_path / "images").as_posix(): int(p.labels[0, 0])
        for p in pictures
    } == {"b/1.png": 0, "a/x/2.png": 1, "3.png": 2}


def test_maps_inside_the_folder_of_images_are_no_pictures(tmp_path):
    masks(tmp_path, 0, 1)
    (tmp_path / "images").rename(tmp_path / "pictures")
    (tmp_path / "labels").rename(tmp_path / "pictures/labels")
    pictures, skipped, warnings = read_folder(
        tmp_path / "pictures", tmp_path / "pictures/labels", reading=Reading(LabelCode(2))
    )
    assert len(pictures) == 3 and not skipped and not warnings


@pytest.mark.parametrize("ending", ["gif", "avif", "webp", "bmp", "jfif", "pgm", "tga", "jp2"])
def test_other_endings_are_read(ending, tmp_path):
    Image.fromarray(np.full((16, 24), 120, np.uint8)).save(tmp_path / f"a.{ending}")
    assert abs(float(only(tmp_path).mean()) - 120) < 4


def test_files_that_are_not_read_are_counted_by_ending(tmp_path):
    picture(tmp_path / "a.png")
    for name in ("b.heic", "c.heic", "sub/d.heic", "notes.txt", "README", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    pictures, _, (warning,) = read_folder(tmp_path)
    assert len(pictures) == 1 and warning.where == str(tmp_path)
    assert warning.message.startswith("some files are not read")
    assert "3 x .heic" in warning.value and "1 x .txt" in warning.value
    assert "1 x linked folders" in warning.value
    (tmp_path / "a.png").unlink()
    refusal(tmp_path, "0 images, but 3 x .heic")


def test_files_beside_those_of_categories_are_counted_once(tmp_path):
    for name in ("x", "y"):
        picture(tmp_path / name / "a.png")
        (tmp_path / name / "list.txt").write_text("x")
    for check in (True, False):
        _, _, (warning,) = read_categories(tmp_path, check=check)
        assert warning.value == "2 x .txt"


def test_a_map_may_end_in_capitals(tmp_path):
    folder = masks(tmp_path, 0, 1)
    for path in (folder / "labels").iterdir():
        path.rename(path.with_suffix(".PNG"))
    reading = Reading(LabelCode(2))
    pictures, *_ = read_folder(folder / "images", folder / "labels", reading=reading)
    assert pictures[0].labels[0].tolist() == [0, 1, 0, 1, 0, 1]


def test_two_images_do_not_share_a_label_map(tmp_path):
    folder = masks(tmp_path, 0, 1)
    picture(folder / "images/1.png")
    reading = Reading(LabelCode(2))
    refusal(
        folder / "images",
        "images/1.jpg",
        "images/1.png",
        "share",
        labels=folder / "labels",
        reading=reading,
    )
    pictures, skipped, warnings = read_folder(
        folder / "images", folder / "labels", reading=reading, on_bad_row="skip"
    )
    assert [Path(p.name).stem for p in pictures] == ["0", "2"]
    assert len(skipped) == 2 and not warnings
    assert len(read_folder(folder / "images")[0]) == 4  # without maps there is nothing to share


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (10, 201)])
def test_strips_are_refused(size, tmp_path):
    picture(tmp_path / "a.png", size=size)
    refusal(tmp_path, "a.png", "strip", reading=Reading(size=64))
    picture(tmp_path / "a.png", size=(10, 200))
    assert only(tmp_path, reading=Reading(size=5)).shape == (5, 100, 3)


def test_a_picture_is_the_same_at_any_size_and_in_any_lossless_format(tmp_path):
    path = picture(tmp_path / "x/a.png", size=(32, 32))
    (tmp_path / "y").mkdir()
    Image.open(path).save(tmp_path / "y/b.bmp")
    small, large = (
        read_folder(tmp_path / name, reading=Reading(size=size))[0][0]
        for name, size in (("x", 8), ("y", (16, 24)))
    )
    assert small.identity == large.identity and not torch.equal(small.pixels, large.pixels[:, :8])
    assert read_folder(picture(tmp_path / "z/a.png", 1).parent)[0][0].identity != small.identity
