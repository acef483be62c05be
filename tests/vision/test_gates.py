"""Whether the test bed can tell: quick gates on the packaged learner; the long ones are
`benchmarks/vision_gates.py`.
"""

import pytest
import torch

from vpretrain.config import recipe as recipes
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.vision import Vision
from vpretrain.vision.backbone import Backbone
from vpretrain.vision.evaluation.probes import segmentation_probe
from vpretrain.vision.feedback.features import LastBlocks, freeze
from vpretrain.vision.loading import new_model

FEWER = [
    "data.evaluation.train.0.count=128",
    "data.evaluation.test.0.count=128",
    "evaluate.probe.steps=100",
    "evaluate.probes=[segmentation]",
    "data.feedback.head.warmup_steps=50",
    "learner.head_warmup_steps=0",
]


def demo(*overrides):
    return recipes.load("demo-vision", [*FEWER, *overrides], schemas=SCHEMAS)


@pytest.fixture(scope="module")
def bed():
    recipe = demo("arm=plain")
    materials = Vision().load(recipe)
    return recipe, materials, Vision().build(recipe, materials)


def probe(bed, model, refits=(0,)):
    recipe, materials, _ = bed
    encoder = LastBlocks(Backbone(model), recipe.evaluate.blocks)
    parts = (
        freeze(encoder, pictures) for pictures in (materials.sets.probed, materials.sets.evaluation)
    )
    settings = recipe.evaluate.probe.model_copy(update={"refits": refits})
    return segmentation_probe(
        *parts, classes=7, settings=settings, class_balanced=recipe.evaluate.class_balanced
    )


def random_model(recipe, seed=0):
    torch.manual_seed(seed)
    return new_model(recipe.learner.prepare.config, dtype=torch.float32, attention="sdpa").eval()


def test_the_packaged_learner_is_the_one_that_the_recipe_makes(bed):
    recipe, materials, parts = bed
    assert materials.location.endswith(recipe.learner.model) and "assets" in materials.location
    config = parts.learner.backbone.model.config.to_dict()
    assert all(config[key] == value for key, value in recipe.learner.prepare.config.items())
    assert not any(key[0] == "learner" for key in materials.warmed)  # head and teacher came with it


def test_pretraining_lifts_the_probe_clearly_above_random_weights_and_its_own_noise(bed):
    packaged = probe(bed, bed[2].learner.backbone.model, refits=(0, 1, 2))
    random = probe(bed, random_model(bed[0]))
    lift = packaged.scores["miou"].value - random.scores["miou"].value
    assert lift > 0.05
    assert packaged.refit_std["miou"] < 0.1 * lift
    assert packaged.scores["miou"].stderr < 0.25 * lift


def test_the_packaged_learner_has_not_collapsed(bed):
    """Its teacher tells images apart: targets are sharper in an image than over all of them."""
    parts = bed[2]
    scores = parts.learner.forward(next(parts.stream)).teacher_logits.flatten(0, 1)
    targets = torch.softmax(
        scores / bed[0].learner.teacher_temperature, dim=-1
    )  # before they are balanced

    def entropy(p):
        return float(-(p * p.clamp_min(1e-12).log()).sum(-1).mean())

    assert entropy(targets.mean(0)) - entropy(targets) > 1.0


@pytest.mark.slow
def test_direct_is_clearly_above_plain():
    """The reference that the method forbids has to be seen in mIoU, or nothing else could be."""
    results = {}
    for arm in ("plain", "direct"):
        recipe = recipes.load(
            "demo-vision", [f"arm={arm}", "evaluate.probes=[segmentation]"], schemas=SCHEMAS
        )
        result = train(Run(recipe, Vision().build(recipe, Vision().load(recipe))))
        results[arm] = result.final["test/miou"].value
    assert results["plain"] > result.step0["test/miou"].value
    assert results["direct"] > results["plain"] + 0.02
