"""The picture of a run: what is drawn is what the learner was steered_views."""

import pytest
import torch
from PIL import Image

from tests.vision.conftest import tiny_recipe
from vpretrain.vision import Vision
from vpretrain.vision.steering.picture import steered_views


def parts_of(materials, arm, kind="dino"):
    recipe = tiny_recipe(f"arm={arm}", kind=kind)
    return recipe, Vision().build(recipe, materials[kind])


MASKS = ["ascent", "constant_mask", "random_masks", "uneven_masks", "other_pictures"]


@pytest.mark.parametrize("arm", MASKS)
def test_masks_are_drawn(arm, materials, tmp_path):
    recipe, parts = parts_of(materials, arm)
    path = tmp_path / "pictures" / "masks.png"
    assert Vision().picture(recipe, parts, path)
    with Image.open(path) as image:
        assert image.width > image.height > 100


@pytest.mark.parametrize(
    ("arm", "kind"),
    [
        *[(arm, "dino") for arm in ("plain", "closed_form", "uniform_smoothing", "chosen_crops")],
        *[(arm, "ijepa") for arm in ("plain", "ascent", "patch_weights")],
    ],
)
def test_an_arm_that_steers_no_views_has_no_picture(arm, kind, materials, tmp_path):
    recipe, parts = parts_of(materials, arm, kind)
    assert not Vision().picture(recipe, parts, tmp_path / "masks.png")
    assert list(tmp_path.iterdir()) == []


def test_what_is_drawn_is_what_the_learner_sees(materials):
    recipe, parts = parts_of(materials, "constant_mask")
    batch, crops = next(parts.stream), recipe.learner.crops
    result = steered_views(parts.learner, parts.designer, batch, mean=crops.mean, std=crops.std)
    assert result is not None and len(result.crops) == recipe.data.batch_size
    assert torch.allclose(result.masks, torch.full_like(result.masks, recipe.designer.keep_ratio))
    context = parts.learner.forward(batch)
    scale, shift = (torch.tensor(each).view(3, 1, 1) for each in (crops.std, crops.mean))
    assert torch.allclose((result.crops - shift) / scale, context.global_views[0], atol=1e-4)
    assert not torch.equal(result.views, result.crops)
    assert float(result.views.min()) >= 0 and float(result.views.max()) <= 1
