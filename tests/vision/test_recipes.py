"""Every vision recipe is read by the schema, has every value that the paper gives, and takes two
steps with shrunken sizes.
"""

from pathlib import Path

import pytest

from tests.vision.conftest import IJEPA, SCENES, SMALL
from vpretrain.config import recipe as recipes
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.vision import Vision

FOLDER = Path(__file__).parents[2] / "recipes" / "vision"
PATHS = sorted(FOLDER.glob("*.yaml"))
PROBE = {
    "steps": 20_000,
    "batch_size": 8,
    "weight_decay": 0.05,
    "warmup_fraction": 1000 / 20_000,
    "clip_norm": 1.0,
}
PAPER = {  # Appendix G: the same in every run
    "budget.steps": 20_000,
    "learner.kind": "dino",
    "learner.dtype": "bfloat16",
    "learner.weight_decay": 0.04,
    "learner.clip_norm": 1.0,
    "learner.warmup_fraction": 1000 / 20_000,
    "learner.crops.global_count": 2,
    "learner.crops.global_size": 224,
    "learner.crops.local_count": 6,
    "learner.crops.local_size": 96,
    "learner.head.prototypes": 8192,
    "learner.student_temperature": 0.1,
    "learner.teacher_temperature": 0.04,
    "learner.centering": "mean",
    "learner.center_momentum": 0.9,
    "learner.teacher_momentum": 0.996,
    "learner.teacher_views": "learned",
    "learner.local_views_in_value": True,
    "learner.aligned_patterns": [],
    "designer.kind": "ascent",
    "value.unit": "raw",
    "designer.updates": 1,
    "designer.meta_images": None,
    "value.alignment": "dot",
    "value.memory": 0,
    "value.shrink": False,
    "value.guard_window": 0,
    "data.stream.0.pictures.kind": "imagenet",
    "data.feedback.sets.0.pictures.kind": "ade20k",
    "data.feedback.sets.0.train": 2000,
    "data.feedback.sets.0.meta": 512,
    "data.feedback.sets.1.pictures.kind": "nyuv2",
    "data.feedback.sets.1.train": 512,
    "data.feedback.sets.1.meta": 128,
    "data.evaluation.test.0.kind": "ade20k",
    "data.evaluation.test.0.size": (512, 512),
    "data.evaluation.test.1.kind": "nyuv2",
    "data.evaluation.test.1.size": (480, 640),
    "data.evaluation.test.1.eigen_crop": True,
    **{f"evaluate.probe.{key}": value for key, value in PROBE.items()},
    "evaluate.probe.learning_rate": 5e-4,
    **{f"evaluate.depth_probe.{key}": value for key, value in PROBE.items()},
    "evaluate.depth_probe.learning_rate": 1e-3,
}
COLUMNS = (
    "learner.model",
    "learner.learning_rate",
    "data.batch_size",
    "value.meta_period",
    "data.meta_batch_size",
    "learner.aligned_blocks",
    "designer.network",
    "designer.learning_rate",
    "designer.keep_ratio",
    "designer.sparsity",
    "designer.total_variation",
    "data.feedback.tasks.segmentation",
    "data.feedback.tasks.depth",
)
VIT_B, VIT_L = (f"facebook/dinov3-vit{size}16-pretrain-lvd1689m" for size in "bl")
TABLE_11 = {
    "ade20k-vitb": (VIT_B, 4.15e-6, 256, 4, 32, 2, "unet", 1.54e-4, 0.6, 0.131, 0.144, 1, 8),
    "ade20k-vitl": (VIT_L, 4.50e-5, 50, 4, 16, 4, "unet", 2.17e-4, 0.5, 0.196, 0.0399, 4, 1),
    "nyuv2-vitb": (VIT_B, 8.58e-6, 256, 8, 64, 3, "patch", 2.21e-4, 0.4, 0.111, 0.0417, 16, 2),
    "nyuv2-vitl": (VIT_L, 1.94e-6, 50, 2, 32, 4, "unet", 8.03e-4, 0.4, 0.401, 0.159, 32, 16),
}
# Table 6 is without values of its own: those of the row that is steered by both tasks and has its learner.
TABLE_11["multitask-vitb"] = TABLE_11["ade20k-vitb"]
MEASURED = {
    "ade20k-vitb": ["segmentation"],
    "ade20k-vitl": ["segmentation"],
    "nyuv2-vitb": ["depth"],
    "nyuv2-vitl": ["depth"],
    "multitask-vitb": ["segmentation", "depth"],
}
NOT_GIVEN = (
    "image_size",
    "batch_size: 16",
    "batches",
    "head:",
    "crops:",
    "head_warmup_steps",
    "blur_sigma",
    "final_fraction",
)
RUN_HERE = ("camvid", "cifar10", "nuclei", "room")
"""Recipes of real pictures that two cores can train on."""
OURS = (*RUN_HERE, "ijepa-vith")
"""Recipes whose values are ours."""


def value_at(recipe, key):
    """The value of a dotted key."""
    for name in key.split("."):
        if isinstance(recipe, dict):
            recipe = recipe[name]
        else:
            recipe = recipe[int(name)] if name.isdigit() else getattr(recipe, name)
    return recipe


def shrunken(source, *overrides):
    """The recipe with tiny sizes."""
    if recipes.load(source, overrides, schemas=SCHEMAS).learner.kind == "ijepa":
        overrides = [*overrides, *(key for key in IJEPA if not key.startswith("designer"))]
    loaded = recipes.load(source, [*SMALL, *overrides], schemas=SCHEMAS)
    data = loaded.data
    sizes = [] if data.meta_batch_size is None else ["data.meta_batch_size=4"]
    for i in range(len(data.feedback.sets)):
        at = f"data.feedback.sets.{i}"
        sizes += [f"{at}.train=4", f"{at}.meta=4", f"{at}.pictures.size=[32, 32]"]
    for split, sets in data.evaluation.items():
        sizes += [f"data.evaluation.{split}.{i}.size=[32, 32]" for i in range(len(sets))]
    return recipes.load(source, [*SMALL, *overrides, *sizes], schemas=SCHEMAS)


def two_steps(recipe):
    modality = Vision()
    result = train(Run(recipe, modality.build(recipe, modality.load(recipe))))
    assert result.spent.steps == 2 and result.spent.tokens == 8
    assert result.final.keys() == result.step0.keys()
    shaped = "gate" if recipe.arm == "view_weights" else "mask_std"
    assert {"gain", "agreement", shaped} <= result.history[-1].keys()
    return result


def test_packaged():
    result = two_steps(shrunken("demo-vision", *SCENES))
    assert {"test/miou", "test/depth_rmse", "test/accuracy", "test/knn"} <= result.final.keys()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_two_steps(path, data_root):
    """With its own keys: both tasks, and a batch of the designer's own."""
    recipe = shrunken(path, f"data.root={data_root}", "evaluate.depth_probe=null")
    result = two_steps(recipe).final
    probes = set(recipe.evaluate.probes)
    assert ("test/miou" in result) == ("segmentation" in probes)
    assert ("test/depth_rmse" in result) == ("depth" in probes)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_opens_with_its_command(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# vpretrain train recipes/vision/{path.name} data.root=")
    assert ("Not run here" in text) == (path.stem not in RUN_HERE)


def test_no_recipe_is_forgotten():
    assert {path.stem for path in PATHS} == {*OURS, *TABLE_11}


@pytest.mark.parametrize("name", TABLE_11)
def test_values_of_the_paper(name):
    """Every value that the paper gives, one by one."""
    recipe = recipes.load(FOLDER / f"{name}.yaml", [], schemas=SCHEMAS)
    expected = PAPER | dict(zip(COLUMNS, TABLE_11[name], strict=True))
    assert {key: value_at(recipe, key) for key in expected} == expected
    assert recipe.evaluate.probes == MEASURED[name]
    assert set(recipe.data.feedback.tasks) == {"segmentation", "depth"}


def test_values_that_the_paper_lacks_are_marked():
    lines = (FOLDER / "ade20k-vitb.yaml").read_text(encoding="utf-8").splitlines()
    for key in NOT_GIVEN:
        result = [line for line in lines if line.strip().startswith(key) and "not given" in line]
        assert result, key
    text = (FOLDER / "ijepa-vith.yaml").read_text(encoding="utf-8")
    assert "All values below are ours" in text


@pytest.mark.data
def test_camvid_itself(shared_data):
    """The real pictures: as many as there should be, and none of those that are scored is among
    those that are learned from.
    """
    recipe = recipes.load(
        FOLDER / "camvid.yaml", [f"data.root={shared_data / 'camvid'}"], schemas=SCHEMAS
    )
    sets = (
        Vision()
        .load(recipe.model_copy(update={"learner": shrunken(FOLDER / "camvid.yaml").learner}))
        .sets
    )
    assert [len(sets.stream[0].pictures), len(sets.train), len(sets.meta)] == [367, 32, 32]
    assert [len(sets.probed), len(sets.evaluation)] == [367, 233]
    assert sets.tasks["segmentation"].classes == 11 and sets.evaluation[0].size == (96, 128)
