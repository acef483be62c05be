"""What a run's probes measure is what its recipe says."""

import numpy
import torch
from PIL import Image

from tests.vision.conftest import tiny_recipe
from tests.vision.evaluation.test_probes import Watched
from vpretrain.vision import Vision
from vpretrain.vision.evaluation.measure import evaluate

FAR = "{{kind: folder, images: {0}/images, depth: {0}/depth, depth_metres: [1, 60]}}"


def test_depths_beyond_ten_metres_are_learned_and_scored(tmp_path):
    """Streets, not rooms: grey is distance."""
    draw = numpy.random.default_rng(0)
    for part in ("train", "test"):
        for at in range(16):
            metres = numpy.kron(draw.uniform(15, 50, (2, 1)), numpy.ones((16, 32)))
            grey = numpy.repeat((metres * 5).astype(numpy.uint8)[:, :, None], 3, axis=2)
            maps = {"images": grey, "depth": (metres * 1000).astype(numpy.uint16)}
            for name, values in maps.items():
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / part / name / f"{at}.png")
    recipe = tiny_recipe(
        f"data.root={tmp_path}",
        f"data.feedback.sets.0.pictures={FAR.format('train')}",
        "data.feedback.tasks={depth: 1}",
        f"data.evaluation.train=[{FAR.format('train')}]",
        f"data.evaluation.test=[{FAR.format('test')}]",
        "evaluate.probes=[depth]",
        "evaluate.probe={steps: 400, batch_size: 8, learning_rate: 0.1}",
    )
    sets = Vision().load(recipe).sets
    depth = sets.tasks["depth"]
    assert float(depth.counts(depth.targets(sets.meta)).min()) == 32 * 32
    assert evaluate(recipe, sets, Watched())["test/depth_rmse"].value < 4


def test_depths_of_rooms_end_at_ten_metres(materials):
    """As is usual on NYUv2."""
    depth = materials["dino"].sets.tasks["depth"]
    assert depth.valid(torch.tensor([0.0, 0.5, 10.0, 10.1])).tolist() == [False, True, True, False]
