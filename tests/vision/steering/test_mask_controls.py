"""Controls of learned masks: the right values in the wrong places, and the wrong picture's
direction.
"""

import pytest
import torch

from tests.vision.conftest import tiny_recipe, trained
from vpretrain.method.network import Learning, NetworkDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Estimate
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision
from vpretrain.vision.dino import learner as dino
from vpretrain.vision.steering.mask_controls import OtherPictures, OtherPicturesMasks, UnevenMasks
from vpretrain.vision.steering.masks import UNetMasks
from vpretrain.vision.steering.surfaces import ContextMasks, MaskPrice, ViewMasks, mask_metrics


def context(images=4, side=16):
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, images, 3, side, side, generator=generator)
    return dino.Context(None, views, None, None)


def learned_masks():
    """A designer whose masks are uneven, each in its own way."""
    network = UNetMasks(0.5, base=8, depth=1, seed=0)
    with torch.no_grad():
        network.head.weight.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    return NetworkDesigner(
        network,
        ViewMasks(1.0, local_views_in_value=False),
        MaskPrice(0.5, 0.0, 0.0),
        Learning(0.1, Reliability(shrink=False, unit="raw")),
    )


def test_scattered_masks_have_the_mean_and_the_unevenness_of_the_learned_ones():
    designer, given = UnevenMasks(learned_masks(), grain=8, seed=3), context()
    state = torch.get_rng_state()
    learned = designer.learned.make_task(given, None).mask.flatten(0, 1)
    masks, again = (designer.make_task(given, None).mask.flatten(0, 1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(masks.flatten(1).sort(dim=1).values, learned.flatten(1).sort(dim=1).values)
    here, there = mask_metrics(masks), mask_metrics(learned)
    for name in ("mask_mean", "mask_std", "mask_spread"):
        assert abs(here[name] - there[name]) < 1e-6
    assert here["mask_std"] > 0.05
    assert not torch.equal(masks, again) and not torch.equal(masks, learned)


def test_scattered_context_masks_are_as_uneven_as_the_learned_ones_for_the_encoder(materials):
    """I-JEPA's encoder sees the mean of each patch, and single pixels of smooth noise average less
    than those of a rough mask.
    """
    parts = Vision().build(tiny_recipe("arm=uneven_masks", kind="ijepa"), materials["ijepa"])
    designer, given = parts.designer, parts.learner.forward(next(parts.stream))
    with torch.no_grad():
        designer.learned.network.head.weight.normal_(
            std=2.0, generator=torch.Generator().manual_seed(1)
        )
    masks, learned = (
        each.make_task(given, None).context_mask for each in (designer, designer.learned)
    )
    torch.testing.assert_close(masks.sort(dim=1).values, learned.sort(dim=1).values)
    assert float(learned.std(dim=1).mean()) > 0.05 and not torch.equal(masks, learned)
    assert designer.grain == 2, "patches, which are the 8 pixels of the recipe"


def test_the_unevenness_that_is_logged_is_what_the_learner_sees():
    """A chequerboard of pixels is grey to an encoder of patches."""
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(1, 1, 4, 4)
    seen, views = ContextMasks(4), ViewMasks(1.0, local_views_in_value=False)
    assert seen.metrics(board)["mask_std"] == 0 and seen.metrics(board)["mask_mean"] == 0.5
    assert views.metrics(board) == mask_metrics(board) and mask_metrics(board)["mask_std"] == 0.5


def test_scattered_masks_follow_the_learned_ones_as_they_change():
    designer, given = UnevenMasks(learned_masks(), grain=8, seed=3), context()
    before = float(designer.make_task(given, None).mask.mean())
    with torch.no_grad():
        designer.learned.network.head.bias += 1.0
    assert float(designer.make_task(given, None).mask.mean()) > before + 0.05


def test_places_know_nothing_of_the_picture():
    """Over many draws a pixel's scattered value is the picture's mean, wherever it is."""
    designer, given = UnevenMasks(learned_masks(), grain=8, seed=0), context(images=1)
    mean = torch.stack([designer.make_task(given, None).mask[0, 0, 0] for _ in range(400)]).mean(0)
    learned = designer.learned.make_task(given, None).mask[0, 0, 0]
    left_out = float(torch.corrcoef(torch.stack([mean.flatten(), learned.flatten()]))[0, 1])
    assert float(mean.std()) < float(learned.std()) / 4 and abs(left_out) < 0.5


def test_state_comes_back():
    one, other = (UnevenMasks(learned_masks(), grain=8, seed=seed) for seed in (1, 2))
    given = context()
    one.make_task(given, None)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.make_task(given, None).mask, other.make_task(given, None).mask)


class Values:
    """The gradient at picture b is b everywhere."""

    def each(self, context, task):
        gradient = torch.zeros_like(task.mask) + torch.arange(4.0).view(1, 4, 1, 1, 1)
        return [Estimate(torch.tensor(2.0), (gradient,))]

    def __call__(self, context, task):
        return self.each(context, task)[0]


def test_each_picture_has_the_gradient_of_another_one_in_the_same_view():
    given = context()
    task = learned_masks().make_task(given, None)
    others = OtherPictures(Values(), ViewMasks.picture_dim)
    (estimate,) = others.each(given, task)
    assert estimate.gradient[0][:, :, 0, 0, 0].tolist() == [[3.0, 0.0, 1.0, 2.0]] * 2
    assert torch.equal(others(given, task).gradient[0], estimate.gradient[0])
    assert float(estimate.value) == 2.0


def test_masks_learn_along_another_pictures_value():
    """Where all pictures have one gradient it makes no difference whose is taken."""
    given = context()

    class Even(Values):
        def each(self, context, task):
            return [Estimate(torch.tensor(0.0), (torch.ones_like(task.mask),))]

    states = []
    for values in (Values(), Even()):
        learned, control = (
            learned_masks(),
            OtherPicturesMasks(learned_masks(), ViewMasks.picture_dim),
        )
        learned.learn(given, values)
        control.learn(given, values)
        states.append(
            [
                torch.equal(a, b)
                for a, b in zip(
                    learned.network.parameters(), control.learned.network.parameters(), strict=True
                )
            ]
        )
    assert not all(states[0]) and all(states[1])


@pytest.mark.parametrize("kind", ["dino", "ijepa"])
def test_one_picture_alone_is_refused(kind, materials):
    """Rolled by one, a single picture would follow its own value: the arm would be ``ascent``."""
    options = ["arm=other_pictures", "designer.kind=ascent"]
    with pytest.raises(UserError, match=r"data\.batch_size.*another picture"):
        trained(materials[kind], *options, "designer.meta_images=1", kind=kind)
    trained(materials[kind], *options, "designer.meta_images=2", kind=kind)


def test_both_are_arms_with_the_network_of_the_recipe(materials):
    learned, others = trained(materials["dino"], "arm=ascent")[1], {}
    for arm in ("uneven_masks", "other_pictures"):
        others[arm] = trained(materials["dino"], f"arm={arm}")[1]
        assert others[arm].stream_digest == learned.stream_digest
        assert {"gain", "mask_std"} <= others[arm].history[-1].keys()
    recipe = tiny_recipe("arm=uneven_masks", "designer.keep_ratio=0.45")
    from vpretrain.vision.steering.arms import ARMS

    assert ARMS.section_of(recipe).keep_ratio == 0.45
