"""Designers of vision and the rules they follow, on hand-made values."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from tests.method.toy import Given
from tests.vision.conftest import KINDS, tiny_recipe
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.network import Learning, NetworkDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.vision import Vision
from vpretrain.vision.dino import learner as dino
from vpretrain.vision.steering.baselines import ConstantMask, RandomMasks, UniformSmoothing
from vpretrain.vision.steering.rules import AnchoredTargets, ViewWeights
from vpretrain.vision.steering.surfaces import ContextMasks, MaskPrice, ViewMasks, mask_metrics
from vpretrain.vision.steering.views import LearnedTargets


class Flat(torch.nn.Module):
    """One logit a pixel, whatever the image: what ascent makes of a value can be read off it."""

    def __init__(self, side=8, start=0.0):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.full((1, 1, side, side), start))

    def forward(self, images):
        return torch.sigmoid(self.logits).expand(len(images), -1, -1, -1)


class Ones(ViewMasks):
    """Values plain views through a mask of ones, so that hand-made values of masks serve for them
    too.
    """

    def __init__(self):
        super().__init__(1.0, local_views_in_value=False)


def views_context(images=3, side=8):
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, images, 3, side, side, generator=generator)
    return dino.Context(None, views, None, None)


def targets_context(teacher):
    return SimpleNamespace(teacher_targets=teacher)


def ascent(
    network,
    *,
    keep_ratio=0.5,
    sparsity=0.0,
    smooth=0.0,
    unit="standardised",
    shrink=True,
    rate=0.1,
    updates=1,
):
    learning = Learning(rate, Reliability(shrink=shrink, unit=unit), updates)
    return NetworkDesigner(network, Ones(), MaskPrice(keep_ratio, sparsity, smooth), learning)


def left_is_good(side=8):
    gradient = torch.ones(1, 1, 1, side, side)
    gradient[..., side // 2 :] = -1
    return gradient


def test_random_masks_have_the_mean_and_differ_every_time():
    state = torch.get_rng_state()
    for keep_ratio in (0.3, 0.6, 0.9):
        designer = RandomMasks(
            ViewMasks(1.0, local_views_in_value=True), keep_ratio, grain=8, seed=3
        )
        first, second = designer.masks(4, (32, 24)), designer.masks(4, (32, 24))
        assert first.shape == (4, 1, 32, 24)
        assert torch.allclose(first.mean(dim=(1, 2, 3)), torch.tensor(keep_ratio), atol=5e-3)
        assert (
            first.min() < 0.5 * keep_ratio and first.max() > 0.99 and not torch.equal(first, second)
        )
        assert not torch.equal(first[0], first[1])
        # Smooth: neighbours are much closer than two pixels anywhere.
        neighbours = torch.diff(first, dim=-1).abs().mean()
        assert neighbours < 0.4 * (first - first.flip(-1).roll(7, -2)).abs().mean()
    assert torch.equal(state, torch.get_rng_state())


def test_random_masks_resume():
    designer = RandomMasks(ViewMasks(1.0, local_views_in_value=True), 0.5, grain=8, seed=3)
    designer.masks(2, (16, 16))
    state = designer.state_dict()
    expected = designer.masks(2, (16, 16))
    again = RandomMasks(ViewMasks(1.0, local_views_in_value=True), 0.5, grain=8, seed=0)
    again.load_state_dict(state)
    assert torch.equal(again.masks(2, (16, 16)), expected)


@pytest.mark.parametrize("designer", [ConstantMask, RandomMasks])
def test_keeping_everything_leaves_views_bit_for_bit(designer):
    context = views_context()
    rest = {} if designer is ConstantMask else {"grain": 4, "seed": 0}
    task = designer(ViewMasks(1.0, local_views_in_value=True), 1.0, **rest).make_task(
        context, Given()
    )
    assert torch.equal(task.views(context.global_views), context.global_views)
    blurred = ConstantMask(ViewMasks(1.0, local_views_in_value=True), 0.25).make_task(
        context, Given()
    )
    expected = 0.25 * context.global_views + 0.75 * blurred.blurred
    assert torch.allclose(blurred.views(context.global_views), expected)


def test_ascent_keeps_what_is_worth_keeping():
    network, context, good = Flat(), views_context(), left_is_good()
    designer = ascent(network)
    metrics = [designer.learn(context, Given(good, good)).metrics for _ in range(20)]
    mask = designer.make_task(context, Given()).mask
    assert (mask[..., :4] > 0.8).all() and (mask[..., 4:] < 0.2).all() and not mask.requires_grad
    assert metrics[0]["mask_std"] == pytest.approx(0, abs=1e-6) and metrics[-1]["mask_std"] > 0.25
    assert metrics[-1]["agreement"] == pytest.approx(1, abs=1e-5)
    # Of a mask of ones all halves cancel; this one keeps the good half.
    assert metrics[-1]["value_baseline"] == 0 and metrics[-1]["gain"] > metrics[0]["gain"]


def test_ascent_hears_nothing_where_feedback_does_not_agree():
    """Value apart, only the prices move the network: towards the keep ratio, evenly."""
    good = left_is_good()
    network = Flat(start=2.0)
    designer = ascent(network, keep_ratio=0.5, sparsity=1.0)
    for _ in range(60):
        designer.learn(views_context(), Given(good, -good))
    assert designer.learning.reliability.factor == 0
    masks = torch.sigmoid(network.logits).detach()
    assert float(masks.mean()) == pytest.approx(0.5, abs=0.05) and float(masks.std()) < 1e-5


def test_the_price_of_roughness_evens_the_mask_out():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 1, 1, 8, 8, generator=generator)
    rough, even = Flat(), Flat()
    for network, price in ((rough, 0.0), (even, 3.0)):
        designer = ascent(network, smooth=price, shrink=False)
        for _ in range(15):
            designer.learn(views_context(), Given(noise, noise))
    variation = [
        mask_metrics(torch.sigmoid(n.logits).detach())["mask_total_variation"]
        for n in (rough, even)
    ]
    assert variation[1] < 0.5 * variation[0]


def test_prices_in_standard_deviations_do_not_depend_on_the_losses_scale():
    after = {}
    for unit in ("standardised", "raw"):
        for scale in (1.0, 1e-6):
            network = Flat()
            designer = ascent(network, sparsity=0.1, keep_ratio=0.9, unit=unit)
            for _ in range(5):
                designer.learn(
                    views_context(), Given(scale * left_is_good(), scale * left_is_good())
                )
            after[unit, scale] = network.logits.detach().clone()
    assert torch.allclose(after["standardised", 1.0], after["standardised", 1e-6], atol=1e-5)
    assert not torch.allclose(after["raw", 1.0], after["raw", 1e-6], atol=1e-2)


def test_a_frozen_network_stays_and_state_comes_back():
    network, good = Flat(), left_is_good()
    ascent(network, rate=0.0).learn(views_context(), Given(good, good))
    assert torch.equal(network.logits, torch.zeros_like(network.logits))
    designer = ascent(network)
    designer.learn(views_context(), Given(good, good))
    again = ascent(Flat())
    again.load_state_dict(
        copy.deepcopy(designer.state_dict())
    )  # optimizers share what they are given
    for each in (designer, again):
        each.learn(views_context(), Given(good, good))
    assert torch.equal(again.network.logits, network.logits)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("local", [True, False])
def test_plain_views_are_valued_as_a_mask_of_ones(kind, local, materials):
    """So that the gain of a mask that keeps everything is nothing."""
    description = f"learner.local_views_in_value={str(local).lower()}"
    parts = Vision().build(tiny_recipe("arm=ascent", description, kind=kind), materials[kind])
    context = parts.learner.forward(next(parts.stream))
    value_estimator = ValueEstimator(
        parts.learner, Alignment("dot", 1.0), ESTIMATORS["forward_mode"]
    )
    value_estimator.update(parts.feedback.gradients(parts.learner), None, 1e-6)
    surface = parts.designer.surface
    images = surface.inputs(context)
    ones = surface.task(context, images.new_ones(len(images), 1, *images.shape[-2:]))
    plain = float(value_estimator(context, surface.valued_baseline_task(context)).value)
    assert plain != 0
    assert float(value_estimator(context, ones).value) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_part_of_the_batch_is_valued_as_the_batch_that_it_is(kind, materials):
    """The value of the masks of the first images is that of a batch of these images alone."""
    parts = Vision().build(tiny_recipe("arm=ascent", kind=kind), materials[kind])
    context, surface = parts.learner.forward(next(parts.stream)), parts.designer.surface
    value_estimator = ValueEstimator(
        parts.learner, Alignment("dot", 1.0), ESTIMATORS["forward_mode"]
    )
    value_estimator.update(parts.feedback.gradients(parts.learner), None, 1e-3)
    halves = [
        value_estimator(some, surface.valued_baseline_task(some)).value
        for some in _halves(surface, context)
    ]
    whole = value_estimator(context, surface.valued_baseline_task(context)).value
    assert len(surface.inputs(surface.part(context, 2))) * 2 == len(surface.inputs(context))
    assert float(sum(halves)) / 2 == pytest.approx(
        float(whole), rel=1e-3
    )  # the loss is a mean over images
    designer = (
        Vision()
        .build(
            tiny_recipe("arm=ascent", "designer.kind=ascent", "designer.meta_images=2", kind=kind),
            materials[kind],
        )
        .designer
    )
    assert {"gain", "mask_std"} <= designer.learn(context, value_estimator).metrics.keys()


def _halves(surface, context):
    """The first two images, and the other two by way of a batch that is turned round."""
    turned = copy.copy(context)
    if hasattr(context, "global_views"):
        turned = type(context)(
            context.batch,
            context.global_views.flip(1),
            context.local_views.flip(1),
            context.learner,
        )
    else:
        for name in ("pixels", "tokens", "contents", "answers"):
            setattr(turned, name, getattr(context, name).flip(0))
        turned.blocks = type(context.blocks)(
            context.blocks.context.flip(0), context.blocks.targets.flip(0)
        )
    return [surface.part(each, 2) for each in (context, turned)]


def test_context_masks_are_means_over_patches(materials):
    parts = Vision().build(tiny_recipe("arm=ascent", kind="ijepa"), materials["ijepa"])
    context = parts.learner.forward(next(parts.stream))
    masks = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    task = ContextMasks(4).task(context, masks)
    assert task.context_mask.shape == (4, 64)
    assert float(task.context_mask[2, 9]) == pytest.approx(
        float(masks[2, 0, 4:8, 4:8].mean()), rel=1e-5
    )
    assert torch.equal(task.weights, torch.ones_like(task.weights))
    (control,) = task.controls()
    assert control is task.context_mask


def test_anchored_targets_by_hand():
    """r = softmax(1, -1) = (0.88080, 0.11920); gain 0.76159; gate 0.38080; 0.61920 * 0.5 + 0.38080
    * 0.88080 = 0.64501.
    """
    context = targets_context(torch.full((1, 1, 2), 0.5))
    rule = AnchoredTargets(temperature=1.0, clip=2.0, gate_max=0.5)
    mass = rule.task(rule.probe(context), torch.tensor([[1.0, -1.0]])).mass.flatten()
    assert mass.tolist() == pytest.approx([0.64501, 0.35499], abs=1e-5)


def test_anchored_targets_move_mass_among_the_candidates_alone():
    teacher = torch.softmax(
        torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    context, rule = targets_context(teacher), AnchoredTargets(candidates=4)
    gradient = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(1))
    values = rule.values(rule.probe(context), gradient)
    assert values.shape == (6, 4) and torch.allclose(values.mean(dim=1), torch.zeros(6), atol=1e-6)
    mass = rule.task(rule.probe(context), 3 * values).mass
    assert torch.allclose(mass.sum(dim=-1), torch.ones(2, 3), atol=1e-6) and (mass >= 0).all()
    outside = torch.ones_like(teacher).scatter(-1, teacher.topk(4, dim=-1).indices, 0).bool()
    assert torch.equal(mass[outside], teacher[outside]) and not torch.allclose(
        mass, teacher, atol=1e-2
    )
    assert ((mass - teacher) * gradient).sum() > 0
    assert torch.equal(rule.task(rule.probe(context), 0 * values).mass, teacher)


def test_view_weights_by_hand():
    """One of two views is worth a standard deviation more than their mean, the other one less: 1.4
    and 0.6.
    """
    teacher = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]])
    context, rule = targets_context(teacher), ViewWeights(tilt=0.4)
    values = rule.values(rule.probe(context), torch.tensor([4.0, 0.0]).expand(2, 1, 2))
    assert values.flatten().tolist() == [3.0, 1.0]
    mass = rule.task(rule.probe(context), values - 2).mass
    assert torch.allclose(mass.sum(dim=-1).flatten(), torch.tensor([1.4, 0.6]))
    assert torch.allclose(mass / mass.sum(dim=-1, keepdim=True), teacher)
    assert torch.equal(rule.task(rule.probe(context), 0 * values).mass, teacher)


def test_gain_is_cross_fitted():
    """Targets made from one half of the feedback are valued by the other: halves that contradict
    each other show a loss.
    """
    teacher = torch.softmax(
        torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    gradient = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    context = targets_context(teacher)

    def gain(*gradients, shrink):
        designer = ExactDesigner(AnchoredTargets(), Reliability(shrink=shrink))
        return designer.learn(context, Given(*gradients)).metrics

    assert gain(gradient, gradient, shrink=False)["gain"] > 0
    assert gain(gradient, -gradient, shrink=False)["gain"] < 0
    closed = gain(gradient, -gradient, shrink=True)
    assert closed["gain"] < 0, "what such targets would lose, though none are made"
    assert closed["gate"] == 0 and closed["agreement"] == pytest.approx(-1, abs=1e-5)


def test_exact_values_each_batch_once():
    """At a meta step the task comes with the update; afterwards values are those of the new
    batch.
    """
    teacher = torch.full((2, 4, 6), 1 / 6)
    asked = []

    class Counting(Given):
        def __call__(self, context, task):
            asked.append(context)
            return super().__call__(context, task)

    description = Counting(*torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(1)))
    designer = ExactDesigner(ViewWeights(), Reliability(shrink=False))
    first, second = targets_context(teacher), targets_context(teacher)
    made = designer.learn(first, description).task
    assert not asked
    later = designer.make_task(second, description)
    assert asked == [second] and torch.equal(later.mass, made.mass)


def test_uniform_smoothing():
    teacher = torch.tensor([[[0.7, 0.2, 0.1]]])
    every = UniformSmoothing(ViewMasks(1.0, local_views_in_value=True), None, 0.3).make_task(
        targets_context(teacher), Given()
    )
    assert every.mass.flatten().tolist() == pytest.approx([0.59, 0.24, 0.17])
    two = UniformSmoothing(ViewMasks(1.0, local_views_in_value=True), 2, 0.3).make_task(
        targets_context(teacher), Given()
    )
    assert two.mass.flatten().tolist() == pytest.approx([0.64, 0.29, 0.07])
    assert isinstance(two, LearnedTargets)


def test_mask_metrics_tell_a_constant_mask_from_one_that_looks():
    constant = torch.cat([torch.full((1, 1, 4, 4), 0.2), torch.full((1, 1, 4, 4), 0.6)])
    seen = mask_metrics(constant)
    assert seen["mask_mean"] == pytest.approx(0.4) and seen["gate"] == pytest.approx(0.6)
    assert seen["mask_std"] == pytest.approx(0, abs=1e-6) and seen["mask_spread"] == pytest.approx(
        0.2
    )
    split = torch.zeros(1, 1, 4, 4)
    split[..., 2:] = 1
    seen = mask_metrics(split)
    assert seen["mask_std"] == pytest.approx(0.5) and seen["mask_spread"] == pytest.approx(
        0, abs=1e-6
    )
    assert seen["mask_total_variation"] == pytest.approx(1 / 3) and math.isfinite(seen["gate"])
