"""A tiny vision recipe, tiny data in the layout of the real sets, and what whole runs are compared
by.
"""

import hashlib
import io

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.designers import of_every_kind
from vpretrain.config import recipe as recipes
from vpretrain.run.modalities import SCHEMAS
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.vision import Vision
from vpretrain.vision.steering.arms import ARMS

SHAPE = (
    "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "image_size: 32"
)
SMALL = [
    "learner.model=null",
    "learner.prepare=null",
    f"learner.config={{model_type: dinov3_vit, {SHAPE}, patch_size: 8, num_register_tokens: 1}}",
    "learner.aligned_blocks=1",
    "learner.learning_rate=1e-3",
    "learner.head_warmup_steps=2",
    "learner.dtype=float32",
    "learner.head={hidden: [32], bottleneck: 16, prototypes: 24}",
    "learner.crops.global_size=32",
    "learner.crops.local_size=16",
    "learner.crops.local_count=2",
    "data.image_size=32",
    "data.load_size=null",
    "data.batch_size=4",
    "data.feedback.batch_size=2",
    "data.feedback.head={steps: 1, batch_size: 2, warmup_steps: 3}",
    "evaluate.probe={steps: 3, batch_size: 4, train_size: [4, 4]}",
    "evaluate.neighbours=3",
    "evaluate.blocks=1",
    "learner.centering=mean",
    "budget={steps: 2}",
    "threads=1",
    "value.settle_steps=1",
    "value.meta_period=1",
    *of_every_kind(ARMS, base=8, depth=1, patch_size=8, width=16, heads=2, grain=8, blur_sigma=1.0),
]
SCENES = [
    "data.stream.0.pictures.count=12",
    "data.feedback.sets.0.pictures.count=12",
    "data.feedback.sets.0.train=6",
    "data.feedback.sets.0.meta=6",
    "data.evaluation.train.0.count=8",
    "data.evaluation.dev.0.count=6",
    "data.evaluation.test.0.count=6",
    "data.feedback.tasks={segmentation: 1, depth: 1}",
]
IJEPA = [
    "learner.kind=ijepa",
    "designer.kind=patch_weights",
    "learner.predictor={width: 16, depth: 1, heads: 2}",
    f"learner.config={{model_type: ijepa, {SHAPE}, patch_size: 4}}",
]
KINDS = {"dino": [], "ijepa": IJEPA}


def tiny_recipe(*overrides, kind="dino"):
    return recipes.load("demo-vision", [*SMALL, *SCENES, *KINDS[kind], *overrides], schemas=SCHEMAS)


def weights_hash(parts):
    """Over everything that trains: backbone, and head or predictor."""
    digest = hashlib.sha256()
    for name, parameter in parts.learner.model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def trained(materials, *overrides, kind="dino"):
    """What a run leaves of the weights, and its result."""
    recipe = tiny_recipe(*overrides, kind=kind)
    parts = Vision().build(recipe, materials)
    result = train(Run(recipe, parts, step0={}))
    return weights_hash(parts), result


@pytest.fixture(scope="session")
def materials():
    """Pictures of the tiny recipe; heads that were warmed up once are shared, as the arms of a
    comparison share them.
    """
    return {kind: Vision().load(tiny_recipe(kind=kind)) for kind in KINDS}


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """ImageNet, ADE20K, NYUv2, CamVid and packed pictures of eight noise images of 32 x 32 pixels a split."""
    root = tmp_path_factory.mktemp("data")
    draw = numpy.random.default_rng(0)

    def write(path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)

    def noise():
        return draw.integers(0, 256, (32, 32, 3), dtype=numpy.uint8)

    def png(values):
        file = io.BytesIO()
        Image.fromarray(values).save(file, "PNG")
        return file.getvalue()

    for part in (
        "stream",
        "feedback",
        "probe",
        "dev",
        "test",
    ):  # as nuclei, cifar10 and room are packed
        labels = draw.integers(0, 3, (8, 32, 32), dtype=numpy.uint8)
        table = {
            "image": [png(noise()) for _ in labels],
            "labels": [png(each) for each in labels],
            "depth": [png(draw.integers(500, 4000, (32, 32), dtype=numpy.uint16)) for _ in labels],
            "category": [at % 4 for at in range(len(labels))],
        }
        pyarrow.parquet.write_table(pyarrow.table(table), root / f"{part}.parquet")

    for at in range(8):
        write(root / f"imagenet/train/n{at % 2}/{at}.png", noise())
        for split in ("training", "validation"):
            write(root / f"ade20k/images/{split}/{at}.png", noise())
            write(
                root / f"ade20k/annotations/{split}/{at}.png",
                draw.integers(0, 151, (32, 32), dtype=numpy.uint8),
            )
        for split in ("train", "test"):
            write(root / f"nyuv2/{split}/rgb/{at}.png", noise())
            write(
                root / f"nyuv2/{split}/depth/{at}.png",
                draw.integers(500, 9000, (32, 32), dtype=numpy.uint16),
            )
        for split in ("train", "val", "test"):
            write(root / f"{split}/images/{at}.png", noise())
            write(
                root / f"{split}/labels/{at}.png", draw.integers(0, 12, (32, 32), dtype=numpy.uint8)
            )
    return root
