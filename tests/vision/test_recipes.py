"""Every vision recipe is read by the schema, says what the paper says, and takes two steps with
shrunken sizes.
"""

from pathlib import Path

import pytest

from tests.vision.conftest import SCENES, SMALL
from vpretrain.config import recipe as recipes
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.vision import Vision

FOLDER = Path(__file__).parents[2] / "recipes" / "vision"
PATHS = sorted(FOLDER.glob("*.yaml"))
# lr, batch, meta period, meta batch, blocks, designer, lr_phi, keep, l_spars, l_tv, weights (Table
# 11)
TABLE_11 = {
    "ade20k-vitb": (
        4.15e-6,
        256,
        4,
        32,
        2,
        "unet",
        1.54e-4,
        0.6,
        0.131,
        0.144,
        {"segmentation": 1},
    ),
    "ade20k-vitl": (
        4.50e-5,
        50,
        4,
        16,
        4,
        "unet",
        2.17e-4,
        0.5,
        0.196,
        0.0399,
        {"segmentation": 4},
    ),
    "nyuv2-vitb": (8.58e-6, 256, 8, 64, 3, "patch", 2.21e-4, 0.4, 0.111, 0.0417, {"depth": 2}),
    "nyuv2-vitl": (1.94e-6, 50, 2, 32, 4, "unet", 8.03e-4, 0.4, 0.401, 0.159, {"depth": 16}),
    "multitask-vitb": (
        4.15e-6,
        256,
        4,
        32,
        2,
        "unet",
        1.54e-4,
        0.6,
        0.131,
        0.144,
        {"segmentation": 1, "depth": 8},
    ),
}


def shrunken(source, *overrides):
    """The recipe with tiny sizes."""
    loaded = recipes.load(source, [*SMALL, *overrides], schemas=SCHEMAS)
    data = loaded.data
    sizes = []
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
    assert {"gain", "agreement", "mask_std"} <= result.history[-1].keys()
    return result


def test_packaged():
    result = two_steps(shrunken("demo-vision", *SCENES))
    assert {"test/miou", "test/depth_rmse", "test/accuracy", "test/knn"} <= result.final.keys()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_two_steps(path, data_root):
    recipe = shrunken(path, f"data.root={data_root}", "evaluate.depth_probe=null")
    found = two_steps(recipe).final
    tasks = set(recipe.data.feedback.tasks)
    assert ("test/miou" in found) == ("segmentation" in tasks) and ("test/depth_rmse" in found) == (
        "depth" in tasks
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_opens_with_its_command(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# vpretrain train recipes/vision/{path.name} data.root=")
    assert ("Not run here" in text) == (path.stem in TABLE_11)


def test_no_recipe_is_forgotten():
    assert {path.stem for path in PATHS} == {"camvid", *TABLE_11}


@pytest.mark.parametrize("name", TABLE_11)
def test_values_of_the_paper(name):
    recipe = recipes.load(FOLDER / f"{name}.yaml", [], schemas=SCHEMAS)
    learner, designer, feedback = recipe.learner, recipe.designer, recipe.data.feedback
    assert (
        learner.learning_rate,
        recipe.data.batch_size,
        recipe.value.meta_period,
        feedback.batch_size * feedback.batches,
        learner.aligned_blocks,
        designer.network,
        designer.learning_rate,
        designer.keep_ratio,
        designer.sparsity,
        designer.total_variation,
        feedback.tasks,
    ) == TABLE_11[name]
    assert (
        designer.meta_images == feedback.batch_size * feedback.batches
        and designer.value_unit == "raw"
    )
    assert (
        recipe.budget.steps == 20_000 and learner.weight_decay == 0.04 and learner.clip_norm == 1.0
    )
    assert learner.warmup_fraction * recipe.budget.steps == 1000
    assert (learner.crops.global_size, learner.crops.local_size, learner.crops.local_count) == (
        224,
        96,
        6,
    )
    assert (learner.student_temperature, learner.teacher_temperature, learner.head.prototypes) == (
        0.1,
        0.04,
        8192,
    )
    assert recipe.evaluate.probe.steps == 20_000 and recipe.evaluate.probe.batch_size == 8


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
