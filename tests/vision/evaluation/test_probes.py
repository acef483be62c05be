"""Probes: figures by hand and against scikit-learn, items that average to them, and what is
refused.
"""

import dataclasses
import math
import types
import weakref

import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import nn

from vpretrain.run.scores import score
from vpretrain.system.errors import UserError
from vpretrain.vision.backbone import Features
from vpretrain.vision.data.images import IGNORE, IMAGENET_MEAN, IMAGENET_STD, Picture, normalised
from vpretrain.vision.evaluation import probes
from vpretrain.vision.evaluation.probes import (
    ProbeSettings,
    bootstrap_stderr,
    classification_probe,
    depth_errors,
    depth_probe,
    knn,
    linearised,
    segmentation_probe,
)
from vpretrain.vision.feedback.features import StoredFeatures, freeze, freeze_within

CLASSES, SIDE = 3, 8
QUICK = ProbeSettings(steps=150, batch_size=8, learning_rate=2e-2)


def pictures(count, start=0, noise=0.0):
    """2 x 2 patches of one class each (depth likewise), a void corner, and a pixel without
    depth.
    """
    result = []
    for at in range(start, start + count):
        generator = torch.Generator().manual_seed(at)
        labels = (
            torch.randint(0, CLASSES, (2, 2), generator=generator)
            .repeat_interleave(4, 0)
            .repeat_interleave(4, 1)
        )
        pixels = torch.stack([(labels == c).float() * 255 for c in range(3)])
        pixels = (
            (pixels + noise * 255 * torch.randn(pixels.shape, generator=generator))
            .clamp(0, 255)
            .to(torch.uint8)
        )
        depth = 1.0 + 2 * labels.float()
        labels[0, 0], depth[0, 1] = IGNORE, 0.0
        result.append(Picture(str(at), pixels, labels, depth, at % CLASSES))
    return result


def seen(given):
    """Features: the mean colour of each patch; pooled: which category it is, scaled, and noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([p.pixels for p in given]).float() / 255
    pooled = (
        nn.functional.one_hot(torch.tensor([p.category or 0 for p in given]), CLASSES).float() * 5
    )
    pooled = pooled * (1 + torch.rand(len(given), 1, generator=generator)) + 0.1 * torch.randn(
        pooled.shape, generator=generator
    )
    return StoredFeatures(given, Features(nn.functional.avg_pool2d(images, 4), pooled))


def test_mean_iou_is_that_of_scikit_learn(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    test = seen(pictures(5, 100))
    logits = torch.randn(5, CLASSES + 1, SIDE, SIDE, generator=generator)
    logits[:, CLASSES] -= 100  # a class that is neither there nor predicted is not in the mean
    monkeypatch.setattr(probes, "fit", lambda *args: Recited(logits))
    monkeypatch.setattr(probes, "SCORED_PICTURES", 2)
    result = segmentation_probe(seen(pictures(8)), test, classes=CLASSES + 1, settings=QUICK).scores
    labels = torch.stack([p.labels for p in test.pictures])
    counted = labels != IGNORE
    predicted = logits.argmax(dim=1)
    expected = jaccard_score(labels[counted], predicted[counted], average="macro")
    assert result["miou"].value == pytest.approx(expected, rel=1e-9)
    loss = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
    assert result["cross_entropy"].value == pytest.approx(float(loss), rel=1e-6)
    for each in result.values():
        assert len(each.items) == each.n == 5 and each.stderr > 0
        assert sum(each.items) / 5 == pytest.approx(each.value, rel=1e-9)
    assert result["miou"].higher_is_better and not result["cross_entropy"].higher_is_better
    masks = [(labels == c, (predicted == c) & counted) for c in range(CLASSES)]
    both = torch.stack([(true & said).sum(dim=(1, 2)) for true, said in masks], dim=1).double()
    union = torch.stack([(true | said).sum(dim=(1, 2)) for true, said in masks], dim=1).double()
    assert result["miou"].stderr == pytest.approx(bootstrap_stderr([(both, union)]))


class Recited:
    """A head that gives the outputs of the pictures in turn, whatever their features."""

    def __init__(self, outputs):
        self.outputs, self.at = outputs, 0

    def __call__(self, features, size):
        assert size == (SIDE, SIDE)
        self.at += len(features.pooled)
        return self.outputs[self.at - len(features.pooled) : self.at]


def test_linearised_items_by_hand_and_their_spread():
    totals, counts = (
        torch.tensor([[1.0, 0.0], [2.0, 0.0]]).double(),
        torch.tensor([[4.0, 0.0], [4.0, 0.0]]).double(),
    )
    # R = 3/8; items R + 2 (t - R 4) / 8
    assert linearised(totals, counts).tolist() == pytest.approx([3 / 8 - 1 / 8, 3 / 8 + 1 / 8])
    generator = torch.Generator().manual_seed(0)
    union = torch.randint(50, 100, (400, 4), generator=generator).double()
    both = (union * torch.rand(400, 4, generator=generator)).round()
    items = linearised(both, union)
    ratios = both.sum(dim=0) / union.sum(dim=0)
    assert float(items.mean()) == pytest.approx(float(ratios.mean()), rel=1e-9)
    spread = score(items, higher_is_better=True).stderr
    assert bootstrap_stderr([(both, union)]) == pytest.approx(spread, rel=0.1)
    assert bootstrap_stderr([(both, union)] * 2) == pytest.approx(bootstrap_stderr([(both, union)]))


def test_depth_errors_by_hand():
    predicted = torch.tensor([[[2.0, 5.0, 9.0]], [[4.0, 4.0, 4.0]]])
    depth = torch.tensor([[[1.0, 4.5, float("nan")]], [[4.0, 8.0, 5.0]]])
    result = depth_errors(predicted, depth, depth > 0)
    first = [((1 + 0.25) / 2) ** 0.5, (1 + 0.5 / 4.5) / 2, 1 / 2]
    # 4 for 5 is a ratio of exactly 1.25, which is not below it
    second = [((16 + 1) / 3) ** 0.5, (0.5 + 0.2) / 3, 1 / 3]
    assert result.tolist() == [pytest.approx(first), pytest.approx(second)]


def test_depth_scores_are_means_over_pictures_of_clipped_predictions(monkeypatch):
    test = seen(pictures(3, 50))
    predicted = (
        torch.stack([p.depth for p in test.pictures])
        + torch.tensor([0.0, 1.0, 90.0])[:, None, None]
    )
    monkeypatch.setattr(probes, "fit", lambda *args: Recited(predicted))
    rmse = depth_probe(seen(pictures(8)), test, settings=QUICK).scores["rmse"]
    valid = [p.depth[p.depth > 0] for p in test.pictures]
    expected = [0.0, 1.0, float((10 - valid[2]).square().mean().sqrt())]
    assert rmse.items == pytest.approx(expected) and rmse.value == pytest.approx(sum(expected) / 3)
    assert not rmse.higher_is_better


def test_probes_learn_what_features_hold_and_not_what_they_do_not():
    train, test = seen(pictures(40)), seen(pictures(20, 100))
    result = segmentation_probe(train, test, classes=CLASSES, settings=QUICK).scores["miou"]
    blind = StoredFeatures(
        test.pictures, Features(torch.zeros_like(test.features.patches), test.features.pooled)
    )
    nothing = segmentation_probe(train, blind, classes=CLASSES, settings=QUICK).scores["miou"]
    assert result.value > 0.9 and nothing.value < 0.3
    depth = depth_probe(train, test, settings=QUICK).scores
    assert (
        depth["rmse"].value < 0.9 < depth_probe(train, blind, settings=QUICK).scores["rmse"].value
    )
    assert depth["delta_1"].higher_is_better and 0 < depth["abs_rel"].value < 0.5
    assert (
        classification_probe(train, test, classes=CLASSES, settings=QUICK).scores["accuracy"].value
        == 1
    )


def test_training_at_another_size_still_scores_at_the_pictures_own():
    train, test = seen(pictures(40)), seen(pictures(20, 100))
    whole = segmentation_probe(train, test, classes=CLASSES, settings=QUICK).scores
    small = QUICK.model_copy(update={"train_size": (2, 2)})
    result = segmentation_probe(train, test, classes=CLASSES, settings=small).scores
    assert result["miou"].value == pytest.approx(whole["miou"].value, abs=0.05)
    assert (
        result["cross_entropy"].value > whole["cross_entropy"].value
    )  # it was not trained for these pixels
    assert depth_probe(train, test, settings=small).scores["rmse"].value < 1.2


def test_class_balance_takes_the_frequencies_out_of_the_training_loss_alone():
    """On features that say nothing a head can only learn how frequent the classes are: 7/8 and 1/8,
    or alike.
    """
    labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    labels[0] = 1
    given = [
        Picture(str(at), torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), labels) for at in range(6)
    ]
    blind = StoredFeatures(given, Features(torch.zeros(6, 2, 2, 2), torch.zeros(6, 2)))
    losses = [
        segmentation_probe(blind, blind, classes=2, settings=QUICK, class_balanced=balance)
        .scores["cross_entropy"]
        .value
        for balance in (False, True)
    ]
    assert losses[0] == pytest.approx(-(7 * math.log(7 / 8) + math.log(1 / 8)) / 8, abs=5e-3)
    assert losses[1] == pytest.approx(math.log(2), abs=5e-3)


def test_a_picture_is_scored_alike_whatever_it_is_scored_with(monkeypatch):
    train, test = seen(pictures(12)), seen(pictures(5, 100))
    short = QUICK.model_copy(update={"steps": 10})
    together = depth_probe(train, test, settings=short).scores["rmse"].items
    monkeypatch.setattr(probes, "SCORED_PICTURES", 1)
    assert depth_probe(train, test, settings=short).scores["rmse"].items == pytest.approx(
        together, rel=1e-5
    )


def test_refits_show_the_probes_own_noise():
    train, test = seen(pictures(16, noise=0.5)), seen(pictures(10, 100, noise=0.5))
    short = QUICK.model_copy(update={"steps": 20})
    one = segmentation_probe(train, test, classes=CLASSES, settings=short)
    other = segmentation_probe(
        train, test, classes=CLASSES, settings=short.model_copy(update={"refits": (7,)})
    )
    both = segmentation_probe(
        train, test, classes=CLASSES, settings=short.model_copy(update={"refits": (0, 7)})
    )
    assert one.refit_std == {} and next(iter(one.scores)) == "miou"
    for metric in ("miou", "cross_entropy"):
        a, b = one.scores[metric].value, other.scores[metric].value
        assert a != b
        assert both.scores[metric].value == pytest.approx((a + b) / 2)
        assert both.refit_std[metric] == pytest.approx(abs(a - b) / 2**0.5)


def test_the_same_seed_gives_the_same_scores_and_the_global_generator_is_left_alone():
    train, test = seen(pictures(12)), seen(pictures(6, 100))
    short = QUICK.model_copy(update={"steps": 10})
    state = torch.get_rng_state()
    scores = [depth_probe(train, test, settings=short).scores for _ in range(2)]
    with torch.no_grad():
        scores.append(depth_probe(train, test, settings=short).scores)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert scores[0] == scores[1] == scores[2] == depth_probe(train, test, settings=short).scores


def test_knn_on_separable_clusters_is_right_and_by_cosine():
    train, test = seen(pictures(30)), seen(pictures(12, 100))
    assert knn(train, test, neighbours=5).value == 1
    longer = StoredFeatures(
        test.pictures, Features(test.features.patches, test.features.pooled * 1e3)
    )
    assert knn(train, longer, neighbours=5).value == 1
    shrunk = torch.where(torch.tensor([[p.category == 0] for p in train.pictures]), 1e-3, 1.0)
    uneven = StoredFeatures(
        train.pictures, Features(train.features.patches, train.features.pooled * shrunk)
    )
    shorter = StoredFeatures(
        test.pictures, Features(test.features.patches, test.features.pooled * 1e-3)
    )
    assert knn(uneven, shorter, neighbours=5).value == 1
    turned = StoredFeatures(
        test.pictures, Features(test.features.patches, test.features.pooled.roll(1, dims=1))
    )
    assert knn(train, turned, neighbours=5).value == 0
    half = StoredFeatures(
        test.pictures,
        Features(
            test.features.patches,
            torch.cat([longer.features.pooled[:6], turned.features.pooled[6:]]),
        ),
    )
    score = knn(train, half, neighbours=5)
    assert score.items == (1.0,) * 6 + (0.0,) * 6 and score.value == 0.5


def test_pictures_without_targets_are_left_out():
    train, given = seen(pictures(12)), pictures(6, 100)
    void = torch.full((SIDE, SIDE), IGNORE)
    given += [
        dataclasses.replace(given[0], name="void", labels=void),
        dataclasses.replace(given[0], labels=None),
    ]
    with_them = segmentation_probe(train, seen(given), classes=CLASSES, settings=QUICK).scores[
        "miou"
    ]
    assert with_them.n == 6


def test_freeze_is_the_backbone_in_evaluation_mode_without_a_graph():
    model = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Dropout(0.5)).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)

    def features(images):
        patches = model(images)
        return Features(patches, patches.mean(dim=(2, 3)))

    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    encoder = types.SimpleNamespace(model=model, features=features, mean=mean, std=std)
    given, state = pictures(5), torch.get_rng_state()
    result = freeze(encoder, given, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state) and model.training and model[1].training
    assert not result.features.patches.requires_grad and (model[0].weight.grad == 1).all()
    torch.testing.assert_close(
        result.features.patches, model[0](normalised(given, mean, std)).detach()
    )
    assert [p.name for p in result.at([3, 1]).pictures] == ["3", "1"]
    torch.testing.assert_close(result.at([3, 1]).features.pooled, result.features.pooled[[3, 1]])


class Watched:
    """Mean colours of patches; remembers the largest batch of features alive at a time."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self):
        self.model = nn.Identity()
        self.model.anything = nn.Parameter(torch.zeros(()))
        self.alive, self.most = weakref.WeakSet(), 0

    def features(self, images):
        patches = nn.functional.avg_pool2d(images, 4)
        self.alive.add(patches)
        self.most = max(self.most, sum(len(each) for each in self.alive))
        return Features(patches, patches.mean(dim=(2, 3)))


@pytest.mark.parametrize("probe", ["segmentation", "depth"])
def test_probes_in_bounded_memory_give_the_same_scores(probe, monkeypatch):
    monkeypatch.setattr(probes, "SCORED_PICTURES", 4)
    sets, options = (pictures(40, noise=0.3), pictures(24, 100, noise=0.3)), {"settings": QUICK}
    run = depth_probe if probe == "depth" else segmentation_probe
    if probe == "segmentation":
        options["classes"] = CLASSES
    whole = [freeze(Watched(), given) for given in sets]
    encoder = Watched()
    bounded = [freeze_within(encoder, given, 100.0, batch_size=8) for given in sets]
    assert run(*whole, **options).scores == run(*bounded, **options).scores
    assert encoder.most <= 2 * QUICK.batch_size  # of 64 pictures


def test_features_that_fit_are_kept():
    given = pictures(10)
    size = 10 * 3 * 2 * 2 * 4
    assert isinstance(freeze_within(Watched(), given, size), StoredFeatures)
    assert not isinstance(freeze_within(Watched(), given, size - 1), StoredFeatures)
    encoder = Watched()
    pooled = freeze_within(encoder, given, 1e9, patches=False, batch_size=2)
    assert encoder.most <= 4 and pooled.pooled.shape == (10, 3)
    settings = ProbeSettings(steps=5, batch_size=4)
    classification_probe(pooled, pooled, classes=CLASSES, settings=settings)
    assert encoder.most <= 4  # whose head reads no features of patches


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda good, bad: segmentation_probe(good, bad("labels"), classes=3, settings=QUICK),
            "segmentation.test",
        ),
        (lambda good, bad: segmentation_probe(good, good, classes=2, settings=QUICK), "0 to 1"),
        (lambda good, bad: depth_probe(bad("depth"), good, settings=QUICK), "depth.train"),
        (
            lambda good, bad: classification_probe(
                good, bad("category"), classes=3, settings=QUICK
            ),
            "a category",
        ),
        (lambda good, bad: knn(good, bad("category"), neighbours=1), "a category"),
        (lambda good, bad: knn(good, good, neighbours=5), "1 to 4"),
        (lambda good, bad: depth_probe(good, good.at([0]), settings=QUICK), "2 or more"),
    ],
)
def test_what_cannot_be_probed_is_refused(call, said):
    given = pictures(4)

    def bad(kind):
        return seen([dataclasses.replace(p, **{kind: None}) for p in given])

    with pytest.raises(UserError) as refused:
        call(seen(given), bad)
    assert said in str(refused.value)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 1}, {"refits": ()}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProbeSettings(**wrong)
