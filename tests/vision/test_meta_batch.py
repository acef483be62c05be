"""The designer's own unlabeled batch (G.2): another size, another order, the same pictures."""

import pytest

from tests.vision.conftest import tiny_recipe
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision
from vpretrain.vision.modality import _meta_batches


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


def test_a_size_that_processes_cannot_share_is_named_by_its_own_key(materials):
    with pytest.raises(UserError) as refused:
        _meta_batches(tiny_recipe("data.meta_batch_size=3"), materials["dino"], rank=0, world=2)
    (problem,) = refused.value.problems
    assert (problem.where, problem.value) == ("data.meta_batch_size", "3")


@pytest.mark.parametrize("size", ["data.meta_batch_size", "data.batch_size"])
def test_more_images_than_a_meta_batch_has_are_warned_about(size, caplog):
    """A search over numbers above it would tune nothing."""
    options = ["arm=ascent", f"{size}=8"]
    Vision().load(tiny_recipe(*options, "designer.meta_images=8"))
    assert "meta_images" not in caplog.text
    Vision().load(tiny_recipe(*options, "designer.meta_images=9"))
    assert "designer.meta_images" in caplog.text and f"{size}: all of them" in caplog.text
