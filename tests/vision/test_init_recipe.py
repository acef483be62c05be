"""What ``init`` writes for pictures fits them."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import AutoConfig, AutoModel

from vpretrain.config.recipe import load
from vpretrain.run.modalities import SCHEMAS
from vpretrain.studies.check import check
from vpretrain.system.errors import UserError
from vpretrain.vision.data.images import IMAGENET_STD
from vpretrain.vision.data.loading import read
from vpretrain.vision.init_recipe import recipe_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny ViT, 60 pictures, and 12 with masks."""
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = AutoConfig.for_model("dinov3_vit", **shape, image_size=32, patch_size=8)
    AutoModel.from_config(config).save_pretrained(tmp_path / "vit")
    draw = np.random.default_rng(0)
    for place, count in (("stream/day/one", 60), ("labelled/images", 12)):
        (tmp_path / place).mkdir(parents=True)
        for at in range(count):
            Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
                tmp_path / place / f"{at:02}.jpg"
            )
    (tmp_path / "labelled/labels").mkdir()
    return tmp_path


def masks(folder: Path, *numbers: int) -> None:
    for at in range(12):
        mask = np.random.default_rng(at).choice(np.array(numbers, np.uint8), (40, 48))
        Image.fromarray(mask).save(folder / f"labelled/labels/{at:02}.png")


def written(folder: Path) -> tuple[str, dict]:
    text, _ = recipe_of(
        str(folder / "vit"),
        str(folder / "stream"),
        str(folder / "labelled"),
        None,
        out=folder / "steer.yaml",
    )
    (folder / "steer.yaml").write_text(text)
    return text, yaml.safe_load(text)


def test_masks_of_0_and_255_are_two_classes_and_the_recipe_says_so(folder: Path) -> None:
    masks(folder, 0, 255)
    text, recipe = written(folder)
    (part,) = recipe["data"]["feedback"]["sets"]
    assert part["pictures"]["classes"] == 2 and part["pictures"]["label_values"] == [0, 255]
    assert "255 is taken for a class" in text
    assert check(str(folder / "steer.yaml"), []) == []


def test_255_beside_two_classes_stays_void(folder: Path) -> None:
    masks(folder, 0, 1, 255)
    text, recipe = written(folder)
    pictures = recipe["data"]["evaluation"]["test"][0]
    assert pictures["classes"] == 2 and "label_values" not in pictures
    assert "255 means no label" in text


def test_masks_of_one_class_are_refused(folder: Path) -> None:
    masks(folder, 0)
    with pytest.raises(UserError, match="one class cannot be learned"):
        written(folder)


def test_the_head_fits_the_number_of_pictures(folder: Path) -> None:
    masks(folder, 0, 1)
    learner = written(folder)[1]["learner"]
    assert learner["head"] == {"prototypes": 64} and learner["head_warmup_steps"] == 38


def test_a_batch_is_no_larger_than_the_stream(folder: Path) -> None:
    masks(folder, 0, 1)
    for path in sorted((folder / "stream/day/one").iterdir())[5:]:
        path.unlink()
    assert written(folder)[1]["data"]["batch_size"] == 5
    assert check(str(folder / "steer.yaml"), []) == []


def test_images_are_normalised_as_the_model_says(folder: Path) -> None:
    masks(folder, 0, 1)
    sizes = {"global_size": 32, "local_size": 16}
    assert written(folder)[1]["learner"]["crops"] == sizes
    said = {"image_mean": [0.5, 0.5, 0.5], "image_std": list(IMAGENET_STD), "size": 32}
    (folder / "vit/preprocessor_config.json").write_text(json.dumps(said))
    assert written(folder)[1]["learner"]["crops"] == sizes | {"mean": [0.5, 0.5, 0.5]}
    assert check(str(folder / "steer.yaml"), []) == []


def test_masks_with_a_suffix_are_found_in_their_folder_and_beside_the_pictures(
    folder: Path,
) -> None:
    masks(folder, 0, 128)
    (folder / "labelled/labels").rename(folder / "labelled/masks")
    for path in sorted((folder / "labelled/masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    _, recipe = written(folder)
    pictures = recipe["data"]["evaluation"]["test"][0]
    assert pictures["label_suffix"] == "_mask" and pictures["label_values"] == [0, 128]
    assert pictures["labels"].endswith("labelled/masks")
    assert check(str(folder / "steer.yaml"), []) == []
    for path in [*(folder / "labelled/masks").iterdir(), *(folder / "labelled/images").iterdir()]:
        path.rename(folder / "labelled" / path.name)
    (folder / "labelled/masks").rmdir()
    (folder / "labelled/images").rmdir()
    _, recipe = written(folder)
    pictures = recipe["data"]["evaluation"]["test"][0]
    assert pictures["images"] == pictures["labels"] and pictures["label_suffix"] == "_mask"


@pytest.mark.parametrize("beside", [False, True])
def test_label_maps_in_the_folder_of_the_stream_are_no_pictures(folder: Path, beside: bool) -> None:
    masks(folder, 0, 1)
    (folder / "held-out/images").mkdir(parents=True)
    (folder / "held-out/labels").mkdir()
    for at in range(2):
        (folder / f"stream/day/one/{at:02}.jpg").rename(folder / f"held-out/images/{at}.jpg")
        mask = np.random.default_rng(at).integers(0, 2, (40, 48), np.uint8)
        Image.fromarray(mask).save(folder / f"held-out/labels/{at}.png")
    if beside:
        for part, suffix in (("images", ""), ("labels", "_mask")):
            for path in sorted((folder / "labelled" / part).iterdir()):
                path.rename(folder / f"labelled/{path.stem}{suffix}{path.suffix}")
            (folder / "labelled" / part).rmdir()
    steers, measured = str(folder / "labelled"), str(folder / "held-out")
    out = folder / "steer.yaml"
    text, _ = recipe_of(str(folder / "vit"), steers, steers, measured, out=out)
    out.write_text(text)
    assert yaml.safe_load(text)["data"]["batch_size"] == 12  # there are 12 pictures and 12 maps
    (source,) = read(load(str(out), schemas=SCHEMAS)).stream
    assert sorted(Path(source.pictures[at].name).name for at in range(len(source.pictures))) == [
        f"{at:02}.jpg" for at in range(12)
    ]


def test_painted_masks_have_a_class_a_colour(folder: Path) -> None:
    colours = np.array([[0, 0, 0], [0, 128, 0], [200, 0, 10]], np.uint8)
    for at in range(12):
        classes = np.random.default_rng(at).integers(0, 3, (40, 48))
        Image.fromarray(colours[classes]).save(folder / f"labelled/labels/{at:02}.png")
    _, recipe = written(folder)
    assert recipe["data"]["evaluation"]["test"][0]["label_colours"] == colours.tolist()


def test_a_head_that_came_with_the_model_keeps_its_shape(folder: Path) -> None:
    masks(folder, 0, 1)
    text, steering = recipe_of(
        "scenes-dino", str(folder / "stream"), str(folder / "labelled"), None, out=folder / "a.yaml"
    )
    assert steering == 3 * len(list((folder / "labelled" / "images").iterdir())) // 4
    head = yaml.safe_load(text)["learner"]["head"]
    assert head == {"hidden": [128], "bottleneck": 32, "prototypes": 64}
    (folder / "a.yaml").write_text(text)
    assert check(str(folder / "a.yaml"), []) == []


def test_lines_are_short_but_for_the_names_of_files(folder: Path) -> None:
    masks(folder, 0, 1)
    text, _ = written(folder)
    assert max(len(line.replace(str(folder), "")) for line in text.splitlines()) <= 100


def test_views_are_no_larger_than_224_pixels(folder: Path) -> None:
    """DINOv2's checkpoints are for pictures of 518."""
    masks(folder, 0, 1)
    config = json.loads((folder / "vit/config.json").read_text()) | {"image_size": 518}
    (folder / "vit/config.json").write_text(json.dumps(config))
    _, recipe = written(folder)
    assert recipe["learner"]["crops"]["global_size"] == 224
    assert recipe["data"]["image_size"] == 256
