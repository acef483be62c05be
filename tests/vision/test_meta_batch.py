"""The designer's own unlabeled batch (G.2): another size, another order, the same pictures."""

from tests.vision.conftest import tiny_recipe
from vpretrain.vision import Vision


def test_it_is_a_batch_of_its_own_from_the_same_sources(materials):
    recipe = tiny_recipe("data.meta_batch_size=3", "seed=1")
    parts = Vision().build(recipe, materials["dino"])
    stream, meta = next(parts.stream), next(parts.meta_batches)
    assert meta.pixels.shape == (3, *stream.pixels.shape[1:])
    orders = [
        [int(i) for _ in range(3) for i in next(each).indices]
        for each in (parts.stream, parts.meta_batches)
    ]
    assert orders[0][:9] != orders[1][:9] and set(orders[1]) <= set(range(12))


def test_without_a_size_the_learners_batch_serves(materials):
    parts = Vision().build(tiny_recipe("data.meta_batch_size=null"), materials["dino"])
    assert parts.meta_batches is None
