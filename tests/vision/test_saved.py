"""What stands own_state_on_cpu a backbone is made once, saved, gone on with, and refused in another shape."""

import json

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from tests.vision.conftest import KINDS, SHAPE, tiny_recipe, weights_hash
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision
from vpretrain.vision.learners import own_state_on_cpu
from vpretrain.vision.prepare import cached


@pytest.mark.parametrize(
    ("kind", "of_head"), [("dino", "head.prototypes"), ("ijepa", "predictor.mask_token")]
)
def test_heads_are_warmed_up_once_and_alike(kind, of_head):
    """A build that finds them made is the same as one that makes them, and the backbone has not
    moved.
    """
    recipe = tiny_recipe("arm=plain", kind=kind)
    shared = Vision().load(recipe)
    first, second = Vision().build(recipe, shared), Vision().build(recipe, shared)
    alone = Vision().build(recipe, Vision().load(recipe))
    cold = Vision().build(
        tiny_recipe("arm=plain", "learner.head_warmup_steps=0", kind=kind), Vision().load(recipe)
    )
    moved = {
        name
        for name, parameter in first.learner.model.named_parameters()
        if not torch.equal(parameter, cold.learner.model.get_parameter(name))
    }
    assert moved and all(name.startswith(("head.", "predictor.")) for name in moved)
    states = [own_state_on_cpu(parts.learner) for parts in (first, second, alone, cold)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]) and torch.equal(tensor, states[2][name])
    assert not torch.equal(states[0][of_head], states[3][of_head])
    (kept,) = (state for key, state in shared.warmed.items() if key[0] == "learner")
    assert of_head in kept and not any("backbone" in name or "encoder" in name for name in kept)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_saved_learner_goes_on_with_its_own_state(kind, materials, tmp_path):
    recipe = tiny_recipe("arm=plain", kind=kind)
    parts = Vision().build(recipe, materials[kind])
    parts.learner.after_step(0.5)
    with torch.no_grad():
        for parameter in parts.learner.model.parameters():
            parameter.add_(0.01)
    parts.save(tmp_path / "model")
    AutoModel.from_pretrained(tmp_path / "model")
    description = ["arm=plain", "learner.config=null", f"learner.model={tmp_path / 'model'}"]
    going_on = tiny_recipe(*description, kind=kind)
    again = Vision().build(going_on, Vision().load(going_on))
    assert weights_hash(again) == weights_hash(parts)
    states = [own_state_on_cpu(each.learner) for each in (parts, again)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not (tmp_path / "model/preprocessor_config.json").exists()  # there was none


def test_the_image_processor_goes_along_and_is_compared_with_the_recipe(materials, tmp_path):
    """Else the next run would normalise with ImageNet's mean what was trained on another."""
    start, end = tmp_path / "start", tmp_path / "end"
    Vision().build(tiny_recipe("arm=plain"), materials["dino"]).save(start)
    said = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "size": 32}
    (start / "preprocessor_config.json").write_text(json.dumps(said))
    description = ["arm=plain", "learner.config=null", f"learner.model={start}"]
    recipe = tiny_recipe(*description)
    shared = Vision().load(recipe)
    warned = {warning.where: warning for warning in shared.sets.warnings}
    assert "[0.5, 0.5, 0.5]" in warned["learner.crops.mean"].accepted
    assert "learner.crops.std" not in warned  # the processor does not say
    right = tiny_recipe(*description, "learner.crops.mean=[0.5, 0.5, 0.5]")
    assert "learner.crops.mean" not in {w.where for w in Vision().load(right).sets.warnings}
    for of_run, mean in ((recipe, recipe.learner.crops.mean), (right, (0.5,) * 3)):
        Vision().build(of_run, shared).save(end)
        processor = AutoImageProcessor.from_pretrained(end)
        assert tuple(processor.image_mean) == mean
        assert tuple(processor.image_std) == recipe.learner.crops.std


def test_a_head_of_another_shape_is_refused(materials, tmp_path):
    Vision().build(tiny_recipe(), materials["dino"]).save(tmp_path)
    description = ["learner.config=null", f"learner.model={tmp_path}", "learner.head.prototypes=20"]
    recipe = tiny_recipe(*description)
    with pytest.raises(UserError, match=r"learner\.head.*shape it was made with"):
        Vision().build(recipe, Vision().load(recipe))


def test_prepare_makes_a_learner_that_the_recipe_starts_from(tmp_path, monkeypatch):
    monkeypatch.setenv("VPRETRAIN_CACHE", str(tmp_path))
    config = f"{{model_type: dinov3_vit, {SHAPE}, patch_size: 8}}"
    description = [
        "learner.config=null",
        f"learner.prepare={{config: {config}, steps: 2, batch_size: 4}}",
        "arm=plain",
    ]
    recipe = tiny_recipe(*description)
    assert not Vision().check(recipe).problems and not list(
        tmp_path.iterdir()
    )  # looks, and makes nothing
    folder = Vision().prepare(recipe, None)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "dino.safetensors",
        "model.safetensors",
    ]
    materials = Vision().load(recipe)
    assert materials.location == str(folder)
    assert not any(key[0] == "learner" for key in materials.warmed)
    learner = Vision().build(recipe, materials).learner
    assert float(learner.center.abs().sum()) > 0  # came with the head, not from a warm-up
    other = tiny_recipe(*description, "learner.prepare.seed=1")
    assert Vision().prepare(other, None) != folder
    again = Vision().prepare(recipe, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_prepared_learner_is_named_after_what_it_is_computed_in(materials):
    config = f"{{model_type: dinov3_vit, {SHAPE}, patch_size: 8}}"
    description = ["learner.config=null", f"learner.prepare={{config: {config}, steps: 2}}"]

    def name(*overrides):
        return cached(tiny_recipe(*description, *overrides), materials["dino"].sets).name

    others = [name("learner.dtype=bfloat16"), name("learner.attention=eager")]
    assert len({name(), *others}) == 3
    assert name("learner.dtype=float64") == name()  # it is made in float32
